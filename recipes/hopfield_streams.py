"""All streams of the federated memory, every rule of plasticity, over seeds: one table and one CSV.

    python recipes/hopfield_streams.py                                          ours, ten seeds
    python recipes/hopfield_streams.py --methods='[spectral_entropy,dense entropy]' --only='[K = 4]' --seeds=2

Methods are ours with its default rule (`spectral_entropy`), with fixed plasticity (a number) or the paper's
rules (`entropy`, `agreement`), and the paper's dense pipeline (`dense 0.5`, `dense entropy`, ...).
One default configuration for all streams; seeds start at 100, those below served to choose thresholds.
"""

import csv
from pathlib import Path
from statistics import mean, median

from hopfield_streams_scenarios import DENSE, METHODS, SCENARIOS, run

from lightning_plasticity.cli import run_function
from lightning_plasticity.mistakes import require_at_least

COLUMNS = "stream, method, K found (true), worst m / mean m, forgetting, latency, spurious, attacker w, seeds"


def streams(
    methods: list[str] | None = None,
    only: list[str] | None = None,
    seeds: int = 10,
    first_seed: int = 100,
    output: str = "runs/hopfield_streams",
) -> None:
    """Runs every method on every stream and prints the table.

    Args:
        methods: Ours and dense ones; None: all. The YAML has ours with its default rule.
        only: Names of streams; by default all.
        seeds: Runs of each.
        first_seed: Where seeds begin.
        output: Folder for results.csv and table.md.
    """
    require_at_least(1, seeds=seeds)
    if unknown := sorted(set(only or ()) - set(SCENARIOS)):
        raise ValueError(f"only={unknown}: the streams are {', '.join(SCENARIOS)}")
    runs, folder = [], Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    for name in only or SCENARIOS:
        for method in methods or (*METHODS, *DENSE):
            runs += [run(name, method, seed) for seed in range(first_seed, first_seed + seeds)]
            print(row(runs[-seeds:]), flush=True)
            with (folder / "results.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, runs[0])
                writer.writeheader()
                writer.writerows(runs)
    (folder / "table.md").write_text(table(runs) + "\n")
    print(f"Written to {output}: results.csv, table.md")


def row(runs) -> str:
    """One method on one stream, over seeds."""
    found, latency = [r["found"] for r in runs], [float(r["latency"] or "inf") for r in runs]
    span = f"{min(found)}" if min(found) == max(found) else f"{mean(found):.1f} [{min(found)}-{max(found)}]"
    tail = [r["attacker_w"] for r in runs if r["attacker_w"] != ""]
    cells = [
        runs[0]["scenario"], runs[0]["method"], f"{span} ({runs[0]['truth']})",
        f"{min(r['m_min'] for r in runs):.2f} / {mean(r['m_mean'] for r in runs):.3f}",
        f"{max(r['forgetting'] for r in runs):.2f}",
        f"{median(latency):g}" if "novelty" in runs[0]["scenario"] else "",
        f"{mean(r['spurious'] for r in runs):.1f}", f"{mean(tail):.2f}" if tail else "", str(len(runs)),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def table(runs) -> str:
    """All rows as Markdown."""
    groups = dict.fromkeys((r["scenario"], r["method"]) for r in runs)
    rows = [row([r for r in runs if (r["scenario"], r["method"]) == group]) for group in groups]
    names = COLUMNS.split(", ")
    return "\n".join([f"| {' | '.join(names)} |", "|---" * len(names) + "|", *rows])


if __name__ == "__main__":
    run_function(streams, __file__)
