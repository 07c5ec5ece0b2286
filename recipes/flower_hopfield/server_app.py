"""What the SuperLink runs: it sees sums of sketches, and is not told how many archetypes there are."""

import os
from pathlib import Path

import torch
from data import federation
from flwr.serverapp import ServerApp

from lightning_plasticity.hopfield import FederationConfig
from lightning_plasticity.hopfield.flower import federation_strategy
from lightning_plasticity.metrics.archetype_overlap import magnetisation

app = ServerApp()


@app.main()
def main(grid, context):
    """Run the rounds, and compare with the truth at the end, which here is known."""
    run = context.run_config
    truth = federation(run).archetypes()

    def report(memory):
        print(f"round {memory.round}: {len(memory.archetypes)} archetypes", flush=True)
        if run["output"]:  # written whole or not at all: somebody may be reading
            path = Path(run["output"])
            state = {"memory": memory.state_dict(), "participants": strategy.participants}
            torch.save(state, path.with_suffix(".new"))
            os.replace(path.with_suffix(".new"), path)

    strategy = federation_strategy(
        truth.shape[1],
        FederationConfig(sketch_rank=int(run["sketch-rank"]), controller=run["controller"]),
        min_clients=int(run["min-clients"]),
        patience=float(run["patience"]),
        round_interval=float(run["round-interval"]),
        on_round=report,
    )
    strategy.start(grid, num_rounds=int(run["num-rounds"]), timeout=float(run["timeout"]))
    best = magnetisation(strategy.memory.archetypes, truth)
    print(f"{len(strategy.memory.archetypes)} archetypes found, not told; true: {len(truth)}; "
          f"magnetisation: mean {best.mean():.3f}, worst {best.min():.3f}", flush=True)  # fmt: skip
