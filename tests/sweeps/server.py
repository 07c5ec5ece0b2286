"""A loopback stand-in for W&B's server: just what `wandb sweep` and `wandb agent` ask of it.

The agent is the real one, and so are the trials; only who hands out their arguments is not.
"""

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

ENTITY, PROJECT, SWEEP = "somebody", "lightning-plasticity", "sweep001"
OWNER = {"id": "p1", "name": PROJECT, "entity": {"id": "e1", "name": ENTITY}}


class SweepServer(ThreadingHTTPServer):
    """Hands out trials to agents that have none; ``trials``: run id -> arguments.

    ``stop_when``: run id -> function without arguments; once it is true, the run's agent is told to stop
    it, as W&B does to a trial that early termination gives up.
    """

    daemon_threads = True

    def __init__(self, trials, stop_when):
        super().__init__(("127.0.0.1", 0), Handler)
        self.waiting = list(trials.items())
        self.config = ""
        self.stop_when = stop_when
        self.agents = 0
        self.together = 0  # most trials that ran at once
        self.running = {}  # agent -> run id -> whether it runs, as the agent's last heartbeat said
        self.seen = set()  # run ids that ever ran
        self.operations = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, operation, variables):
        """The data of one GraphQL reply."""
        self.operations.append(operation)
        if operation == "UpsertSweep":
            self.config = variables["config"]
            return {
                "upsertSweep": {"sweep": {"name": SWEEP, "project": OWNER}, "configValidationWarnings": []}
            }
        if operation == "SweepWithRuns":
            sweep = {"id": "s1", "name": SWEEP, "config": self.config, "state": "RUNNING"}
            return {"project": {"sweep": sweep | {"runs": {"edges": []}}}}
        if operation == "CreateAgent":
            self.agents += 1
            return {"createAgent": {"agent": {"id": f"agent{self.agents}"}}}
        if operation == "Heartbeat":
            agent, runs = variables["id"], json.loads(variables["runState"])
            self.running[agent] = runs
            self.together = max(self.together, sum(sum(states.values()) for states in self.running.values()))
            self.seen |= set(runs)
            return {"agentHeartbeat": {"agent": {"id": agent}, "commands": json.dumps(self.commands(runs))}}
        user = {"id": "u1", "entity": ENTITY, "username": ENTITY, "name": ENTITY, "email": "", "admin": False}
        return {"viewer": user | {"flags": "{}", "apiKeys": None, "teams": {"edges": []}}}

    def commands(self, runs):
        """What an agent with these runs is to do: stop one, begin the next, or nothing."""
        if any(runs.values()):
            given_up = [run for run, on in runs.items() if on and self.stop_when.get(run, bool)()]
            return [{"type": "stop", "run_id": run} for run in given_up]
        if not self.waiting:
            return []
        run, arguments = self.waiting.pop(0)
        program = yaml.safe_load(self.config)["program"]
        args = {name: {"value": value} for name, value in arguments.items()}
        return [{"type": "run", "run_id": run, "program": program, "args": args}]


class Handler(BaseHTTPRequestHandler):
    """Answers POST /graphql."""

    server: SweepServer

    def do_POST(self):
        sent = self.rfile.read(int(self.headers["Content-Length"] or 0))
        body = b"{}"  # telemetry, which goes elsewhere
        if self.path == "/graphql":
            request = json.loads(sent)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])[1]
            answer = self.server.answer(operation, request.get("variables") or {})
            body = json.dumps({"data": answer}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


@contextmanager
def serving(trials, stop_when):
    """A running server; stops by itself."""
    server = SweepServer(trials, stop_when)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
