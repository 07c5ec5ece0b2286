"""The examples of this demonstration; put your own in its place."""

from lightning_plasticity.data.federation import Clients, Federation
from lightning_plasticity.data.patterns import load_archetypes


def federation(run):
    """What all clients see together, from the run's configuration; each client draws its own part alone.

    Client `c` sees every archetype but those whose number is `c` modulo the number of clients, so that
    nobody sees all.
    """
    size = int(run["num-features"]) if run["kind"] == "synthetic" else None
    archetypes = load_archetypes(run["kind"], int(run["num-archetypes"]), size, int(run["seed"]))
    number = int(run["num-clients"])
    supports = [[k for k in range(len(archetypes)) if number == 1 or k % number != c] for c in range(number)]
    clients = Clients(number, int(run["examples"]), float(run["quality"]), supports)
    return Federation(archetypes, clients, rounds=int(run["num-rounds"]), seed=int(run["seed"]))
