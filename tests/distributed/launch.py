"""Start two processes of a worker, and compare what they did with one process."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT = 400


def run_two(module: str, folder: Path, *more: str) -> None:
    """Run ``python -m module <rank> <port> <folder> ...`` twice; a failure shows what both printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", module]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    logs = [folder / f"log.{rank}" for rank in range(2)]
    processes = []
    for rank, log in enumerate(logs):
        with log.open("w") as output:
            arguments = [*command, str(rank), str(port), str(folder), *more]
            processes.append(
                subprocess.Popen(arguments, cwd=REPOSITORY, env=environment, stdout=output, stderr=output)
            )
    try:
        codes = [process.wait(TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)


def results(folder: Path, scenario: str) -> list[dict[str, Any]]:
    """What both processes returned."""
    return [torch.load(folder / f"{scenario}.{rank}.pt", weights_only=True) for rank in range(2)]


def assert_equal_masks(one: dict[str, Any], other: dict[str, Any]) -> None:
    """The same masks at the start and after every update."""
    assert len(one["masks"]) == len(other["masks"])
    for update, (a, b) in enumerate(zip(one["masks"], other["masks"], strict=True)):
        assert a.keys() == b.keys()
        for name in a:
            assert torch.equal(a[name], b[name]), f"mask of {name} after update {update}"


def assert_same_run(one: dict[str, Any], other: dict[str, Any], tolerance: float = 1e-9) -> None:
    """The same masks throughout, the same counters, and weights up to rounding (exactly, if 0)."""
    assert_equal_masks(one, other)
    for counter in ("step", "updates", "skipped"):
        assert one[counter] == other[counter]
    for name, weight in one["weights"].items():
        torch.testing.assert_close(weight, other["weights"][name], rtol=0, atol=tolerance)


def last_updates(run: dict[str, Any], count: int) -> dict[str, Any]:
    """A run with its last masks only, as one that was resumed knows them."""
    return run | {"masks": run["masks"][-count:]}


def assert_masked(run: dict[str, Any]) -> None:
    """Weights are exactly zero where the last masks say so."""
    assert not all(mask.all() for mask in run["masks"][-1].values())
    for name, mask in run["masks"][-1].items():
        assert not run["weights"][name][~mask].any()
