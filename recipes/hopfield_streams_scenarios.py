"""The streams that a federated memory has to get through, and one run of one method on one of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from lightning_plasticity.data.archetypes import ArchetypeStream
from lightning_plasticity.data.federation import Clients, Exposure
from lightning_plasticity.data.sources import mnist5k
from lightning_plasticity.hopfield import FederationConfig, Memory, federate
from lightning_plasticity.hopfield.dense import DenseFederation
from lightning_plasticity.metrics.archetype_overlap import magnetisation

FOUND, SPURIOUS = 0.9, 0.7  # overlap from which an archetype counts as found; below which a memory is false
QUALITY = 0.8  # what the paper's rules are told


@dataclass(frozen=True)
class Scenario:
    """A stream; `truth` archetypes that honest clients show by the end; settings that belong to the row."""

    clients: Clients
    archetypes: int = 3
    exposure: Exposure = field(default_factory=Exposure)
    rounds: int = 12
    neurons: int = 400
    kind: str = "synthetic"
    truth: int | None = None
    min_support: int = 1

    def stream(self, seed: int):
        """The data of a seed."""
        if self.kind == "images":
            return DigitImages(self.clients.number, self.clients.examples, seed)
        synthetic = self.kind == "synthetic"
        sizes = (self.archetypes, self.neurons) if synthetic else (None, None)
        return ArchetypeStream(
            self.kind, *sizes, rounds=self.rounds, clients=self.clients, exposure=self.exposure, seed=seed
        ).federation


class DigitImages:
    """Raw binarised digits as examples: no noisy copies of anything. The truth is the mean image's signs."""

    def __init__(self, clients: int, examples: int, seed: int):
        pixels, labels = mnist5k()
        self.images = torch.where(pixels.flatten(1) > 127, 1.0, -1.0)
        means = torch.stack([self.images[labels == digit].mean(0) for digit in range(10)])
        self.truth = torch.where(means >= 0, 1.0, -1.0)
        self.num_clients, self.size = clients, examples
        self.order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(seed))

    def archetypes(self, round: int = 0):
        """Sign of each digit's mean."""
        return self.truth

    def examples(self, round: int, client: int):
        """The client's next images, each shown once."""
        start = (round * self.num_clients + client) * self.size % len(self.order)
        return self.images[self.order[start : start + self.size]]


def fair(number: int = 3, examples: int | list[int] = 33, **settings) -> Clients:
    """Clients of a scenario."""
    return Clients(number, examples, **settings)


NOVEL, FOUR = Exposure(novel=3, novel_from=12, ramp=4), [0.8, 0.8, 0.4, 0.4]
SCENARIOS = {
    "disjoint supports, unequal sizes": Scenario(
        fair(3, [30, 60, 120], supports=[[0, 1], [2, 3], [4, 5]]), archetypes=6
    ),
    "exposure drift": Scenario(fair(), exposure=Exposure(drift=True), rounds=24),
    "novelty 3 -> 6": Scenario(fair(), archetypes=6, exposure=NOVEL, rounds=24),
    "novelty in one client": Scenario(
        fair(supports=[[0, 1, 2], [0, 1, 2], list(range(6))]), archetypes=6, exposure=NOVEL, rounds=24
    ),
    "a noise client": Scenario(fair(4, 80, attackers=["noise"])),
    "a client with NaN": Scenario(fair(4, 80, attackers=["nan"])),
    "a replaying client": Scenario(fair(4, 80, attackers=["replay"])),
    "three of five are noise": Scenario(fair(2, 80, quality=0.5, attackers=["noise"] * 3), rounds=24),
    "own archetype, leaves": Scenario(
        fair(5, 80, supports=[[0, 1, 2]] * 4 + [[3]], leaving={4: 6}), archetypes=4
    ),
    "r .8/.4 mixed": Scenario(fair(4, 60, quality=FOUR), archetypes=4, rounds=24),
    "r .8/.4 split": Scenario(
        fair(4, 60, quality=FOUR, supports=[[0, 1], [0, 1], [2, 3], [2, 3]]), archetypes=4, rounds=24
    ),
    "K = 2": Scenario(fair(3, 60), archetypes=2),
    "K = 4": Scenario(fair(3, 60), archetypes=4),
    "r .2, K = 6": Scenario(fair(quality=0.2), archetypes=6, rounds=24),
    "pure noise": Scenario(fair(3, 60, quality=0.0), archetypes=1, rounds=24, truth=0),
    "K = 20": Scenario(fair(4, 100), archetypes=20),
    "K = 40, N = 1000": Scenario(fair(4, 200), archetypes=40, rounds=6, neurons=1000),
    "digit prototypes": Scenario(fair(4, 60), archetypes=10, kind="digits"),
    "a fake archetype": Scenario(fair(4, 80, attackers=["fake"])),
    "a fake archetype, min_support 2": Scenario(fair(4, 80, attackers=["fake"]), min_support=2),
    "an all +1 client": Scenario(fair(4, 80, attackers=["ones"])),
    "an all +1 client, min_support 2": Scenario(fair(4, 80, attackers=["ones"]), min_support=2),
    "archetypes move 1 % a round": Scenario(fair(), exposure=Exposure(movement=0.01), rounds=40),
    "raw digit images": Scenario(fair(4, 100), archetypes=10, kind="images"),
}
METHODS = ("spectral_entropy", "0.2", "0.5", "1.0", "entropy", "agreement")
DENSE = ("dense 0.2", "dense 0.5", "dense entropy", "dense agreement", "dense literal")


def learner(method: str, scenario: Scenario, seed: int) -> tuple[Callable, Callable]:
    """A function that takes a round's examples, and one that gives archetypes and plasticity after it."""
    rule = method.removeprefix("dense ").replace("literal", "entropy")
    controller = rule if rule.isidentifier() else float(rule)
    if method.startswith("dense"):
        dense = DenseFederation(controller, QUALITY, literal=method == "dense literal", seed=seed)
        return dense.round, lambda: (dense.archetypes, dense.plastic)
    config = FederationConfig(
        controller=controller, quality=QUALITY, min_support=scenario.min_support, seed=seed
    )
    kept = [Memory.empty(scenario.stream(seed).archetypes().shape[1], config)]

    def learn(clients):
        kept[0] = federate(clients, kept[0], config)

    return learn, lambda: (kept[0].archetypes, dict(enumerate(kept[0].report.plasticity.tolist())))


def run(name: str, method: str, seed: int) -> dict:
    """One method on one stream: numbers at its end, and over it."""
    scenario = SCENARIOS[name]
    stream, (learn, state) = scenario.stream(seed), learner(method, scenario, seed)
    history, novel = [], list(range(scenario.archetypes))[-scenario.exposure.novel or scenario.archetypes :]
    latency, found, attacker = "", None, []
    for t in range(scenario.rounds):
        learn([stream.examples(t, c) for c in range(stream.num_clients)])
        found, plastic = state()
        truth = stream.archetypes(t).double()
        found = found.double().reshape(-1, truth.shape[1])
        history.append(magnetisation(found, truth))
        if scenario.clients.attackers:
            w = plastic.get(stream.num_clients - 1, 0.0)
            attacker.append(0.0 if math.isnan(w) else w)  # dropped: no pull
        started = t >= scenario.exposure.novel_from and scenario.exposure.novel
        if started and latency == "" and float(history[-1][novel].min()) > FOUND:
            latency = t - scenario.exposure.novel_from + 1
    overlap = (found @ truth.T).abs() / truth.shape[1]
    best = overlap.amax(1) if len(found) else torch.zeros(0)
    path = torch.stack(history)
    return {
        "scenario": name, "method": method, "seed": seed,
        "truth": scenario.archetypes if scenario.truth is None else scenario.truth, "found": len(found),
        "m_min": float(path[-1].min()), "m_mean": float(path[-1].mean()),
        "forgetting": float((path.amax(0) - path[-1]).max()), "latency": latency,
        "spurious": int((best < SPURIOUS).sum()),
        "attacker_w": sum(attacker) / len(attacker) if attacker else "",
    }  # fmt: skip
