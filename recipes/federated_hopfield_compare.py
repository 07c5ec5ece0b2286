"""Plasticity rules on the recipe's stream over seeds: one table and one CSV.

python recipes/federated_hopfield.py compare --seeds=10
"""

import csv
import math
from pathlib import Path
from statistics import mean, median

import torch
import yaml
from lightning.pytorch import Trainer

from lightning_plasticity.data import ArchetypeStream
from lightning_plasticity.data.federation import Clients, Exposure
from lightning_plasticity.hopfield import FederatedHopfield, FederationConfig
from lightning_plasticity.metrics.archetype_overlap import forgetting, latency, magnetisation
from lightning_plasticity.mistakes import require_at_least
from lightning_plasticity.runs import quiet

RULES: list[str | float] = ["spectral_entropy", "entropy", "agreement", 0.2, 0.5, 1.0]
COLUMNS = ("rule", "seed", "true", "found", "spurious", "m_min", "retrieval", "forgetting", "latency")


def compare(
    seeds: int = 10,
    first_seed: int = 100,
    rules: list[str | float] = RULES,
    settings: str | None = None,
    output: str = "runs/federated_hopfield/compare",
) -> list[dict]:
    """Compares plasticity rules on the same streams over several seeds.

    Args:
        seeds: Streams; a seed changes examples, absences, noise, and archetypes if they are synthetic.
        first_seed: Where seeds begin; the recipe was settled on seed 0.
        rules: Controllers, as in FederationConfig.
        settings: YAML with further `data` and `trainer.max_epochs`, as for `fit --config`.
        output: Folder for results.csv.
    """
    require_at_least(1, seeds=seeds)
    rounds, data = _data(settings)
    rows = []
    for rule in rules:
        for seed in range(first_seed, first_seed + seeds):
            rows.append(_row(rule, seed, _fit(rule, rounds, {**data, "seed": seed})))
        print(summary(rule, [row for row in rows if row["rule"] == rule]), flush=True)
    path = Path(output) / "results.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    print(f"every run: {path}")
    return rows


def _data(settings: str | None) -> tuple[int, dict]:
    """Rounds and the stream's arguments, from the recipe's YAML and another one over it."""
    config = yaml.safe_load(Path(__file__).with_name("federated_hopfield.yaml").read_text())
    more = yaml.safe_load(Path(settings).read_text()) if settings else {}
    data = {**config["data"], **more.get("data", {})}
    for name, kind in (("clients", Clients), ("exposure", Exposure)):
        data[name] = kind(**{**config["data"][name], **more.get("data", {}).get(name, {})})
    rounds = more.get("trainer", {}).get("max_epochs", config["trainer"]["max_epochs"])
    return rounds, data


def _fit(rule: str | float, rounds: int, data: dict) -> tuple[FederatedHopfield, ArchetypeStream]:
    stream = ArchetypeStream(**data, rounds=rounds)
    model = FederatedHopfield(stream.num_features, FederationConfig(controller=rule))
    with quiet():
        trainer = Trainer(
            max_epochs=rounds, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(model, stream)
    return model, stream


def _row(rule: str | float, seed: int, fitted: tuple[FederatedHopfield, ArchetypeStream]) -> dict:
    model, stream = fitted
    truth = stream.federation.archetypes(stream.rounds - 1)
    overlaps, found = model.trace.overlap_table(), model.memory.archetypes
    best = magnetisation(truth, found) if len(found) else torch.zeros(0)
    novel = latency(overlaps)[len(truth) - stream.federation.exposure.novel :]
    return {
        "rule": rule,
        "seed": seed,
        "true": len(truth),
        "found": len(found),
        "spurious": int((best < 0.9).sum()),
        "m_min": float(magnetisation(found, truth).min()),
        "retrieval": model.trace.retrieval[-1],
        "forgetting": float(forgetting(overlaps).nan_to_num().max()),
        "latency": float(novel.max()) if len(novel) else math.nan,
    }


def summary(rule: str | float, rows: list[dict]) -> str:
    """One line of the table: spread over seeds, worst seeds by name."""
    exact = sum(row["found"] == row["true"] and not row["spurious"] for row in rows)
    least, average = min(rows, key=lambda row: row["m_min"]), mean(row["m_min"] for row in rows)
    counts, late = sorted(row["found"] for row in rows), sum(math.isinf(row["latency"]) for row in rows)
    return (
        f"{rule!s:>17} | exact {exact}/{len(rows)} | found {counts[0]}-{counts[-1]} | "
        f"worst m {least['m_min']:.3f} (seed {least['seed']}), mean {average:.3f} | "
        f"retrieval {100 * mean(row['retrieval'] for row in rows):.1f} % | "
        f"forgetting {max(row['forgetting'] for row in rows):.3f} | "
        f"latency {median(row['latency'] for row in rows):g}, never {late}"
    )
