"""A SuperLink and SuperNodes on the loopback, started for real and stopped for certain."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

WAIT = 120  # seconds for anything that takes a few on an idle machine


def free_ports(count):
    """Ports that nobody listens on."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class Network:
    """One SuperLink and some SuperNodes, each in a process group of its own, with logs in a folder."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder, self.processes = folder, {}
        self.environment = os.environ | {
            "FLWR_HOME": str(folder / "flower"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        }
        port, *own = free_ports(nodes + 1)
        (folder / "flower").mkdir()
        (folder / "flower" / "config.toml").write_text(
            f'[superlink]\ndefault = "loopback"\n'
            f'[superlink.loopback]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        link = ["--insecure", "--disable-runtime-dependency-installation", "--host", "127.0.0.1"]
        self.start("link", "flower-superlink", *link, "--port", str(port))
        for node in range(nodes):
            where = ["--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(own[node])]
            self.start(f"node{node}", "flower-supernode", *where, "--node-config", f"partition-id={node}")
        self.wait(lambda: "startup complete" in self.log("link"), "the SuperLink")

    def start(self, name, *command):
        """Starts a program."""
        with (self.folder / f"{name}.log").open("w") as output:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def log(self, name):
        """What a program has printed."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def wait(self, condition, what):
        """Waits until something is true, or fails with the logs."""
        end = time.monotonic() + WAIT
        while not condition():
            if time.monotonic() > end:
                logs = "\n".join(f"--- {name}\n{self.log(name)[-1500:]}" for name in self.processes)
                raise AssertionError(f"{what} did not come in {WAIT} s\n{logs}")
            time.sleep(0.05)

    def run(self, app, **settings):
        """`flwr run`, which hands the app to the SuperLink and returns."""
        text = " ".join(
            f"{name.replace('_', '-')}={value!r}".replace("'", '"') for name, value in settings.items()
        )
        self.start("run", "flwr", "run", str(app), "loopback", "--run-config", text)
        assert self.processes["run"].wait(WAIT) == 0, self.log("run")

    def kill(self, name):
        """Ends a program without a chance to say goodbye."""
        os.killpg(self.processes[name].pid, signal.SIGKILL)
        self.processes[name].wait()

    def stop(self):
        """Ends everything, also what the programs have started in sessions of their own."""
        for name in self.processes:
            if self.processes[name].poll() is None:
                self.kill(name)
        mark = f"FLWR_HOME={self.environment['FLWR_HOME']}".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it has ended by itself, or is somebody else's


@contextmanager
def network(folder, nodes):
    """A network that is stopped whatever happens."""
    made = Network.__new__(Network)
    made.processes, made.environment = {}, {"FLWR_HOME": str(folder / "flower")}
    try:
        made.__init__(folder, nodes)
        yield made
    finally:
        made.stop()
