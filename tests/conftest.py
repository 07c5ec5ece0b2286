"""What every test shares: a folder of its own, no command line, and no W&B unless it asks for it."""

import os
import signal
import sys
from pathlib import Path

import pytest

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # one thread for each of pytest-xdist's processes, and for their children
    os.environ.setdefault("OMP_NUM_THREADS", "1")

collect_ignore_glob = ["benchmarks/bench_*.py"]  # scripts that print ratios


@pytest.fixture(scope="session")
def repository():
    """The root of the checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture
def _hears_interrupts():
    """Ctrl-C as a terminal's process hears it; one started in the background of a shell is deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Runs each test in its own folder, so that no run is written into the checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _no_command_line(monkeypatch):
    """LightningCLI warns of a command line beside `args=`, and pytest has one."""
    monkeypatch.setattr(sys, "argv", ["recipe.py"])


@pytest.fixture(autouse=True)
def _no_wandb(monkeypatch, tmp_path):
    """No login, and W&B switched off; a test that wants it sets WANDB_MODE or deletes it."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
