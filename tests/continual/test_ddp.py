"""Two processes equal one: losses over the whole batch, sums counted once, the same heads everywhere."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.continual.worker import learn

pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")

REPOSITORY = Path(__file__).resolve().parents[2]


def run_two(folder, backbone):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(2):
        command = [
            sys.executable,
            "-m",
            "tests.continual.worker",
            str(rank),
            str(port),
            str(folder),
            backbone,
        ]
        with (folder / f"log.{rank}").open("w") as log:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            processes.append(
                subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)
            )
    try:
        codes = [process.wait(500) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0, 0], (folder / "log.0").read_text()[-3000:]
    return [torch.load(folder / f"{backbone}.{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    alone, pair = learn("conv", 1), run_two(tmp_path, "conv")
    for name, value in alone.items():
        assert torch.equal(pair[0][name], pair[1][name]), name
        if name.endswith((".correct", ".total", "counts")):
            assert torch.equal(pair[0][name], value), name
        elif name.endswith("ridge.weight"):  # a small penalty magnifies rounding
            assert (pair[0][name] - value).norm() < 0.05 * value.norm(), name
        else:
            torch.testing.assert_close(pair[0][name], value, rtol=1e-3, atol=1e-3, msg=name)
