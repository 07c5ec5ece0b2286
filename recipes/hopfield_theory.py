"""Theory against simulation: where an archetype's outlier lies, and how much its eigenvector knows.

    python recipes/hopfield_theory.py                                  N = 400, r = .6, twenty batches each

One archetype of share `pi` beside a common one (the rest); `detectability` predicts eigenvalue and overlap.
Writes theory.csv and theory.png, and prints the largest relative errors.
"""

from pathlib import Path

import torch

from lightning_plasticity.cli import run_function
from lightning_plasticity.figures import OKABE_ITO, new_figure, save_figure
from lightning_plasticity.hopfield import detectability
from lightning_plasticity.mistakes import require_at_least

SHARES = (0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3)


def theory(
    neurons: int = 400,
    quality: float = 0.6,
    examples: list[int] | None = None,
    batches: int = 20,
    seed: int = 0,
    output: str = "runs/hopfield_theory",
) -> None:
    """Compares predictions with spectra of dense operators."""
    require_at_least(1, batches=batches)
    require_at_least(2, neurons=neurons)
    rows, generator = [], torch.Generator().manual_seed(seed)
    for size in examples or (100, 400, 1600):
        for share in SHARES:
            seen = [simulate(neurons, quality, size, share, generator) for _ in range(batches)]
            count = max(1, round(share * size))
            said = detectability(quality, count / size, size, neurons)
            mean, spread = torch.tensor(seen).mean(0).tolist(), torch.tensor(seen).std(0).tolist()
            rows.append({
                "examples": size, "share": count / size, "visible": said.visible,
                "eigenvalue": mean[0], "eigenvalue_sd": spread[0], "eigenvalue_theory": said.eigenvalue,
                "overlap": mean[1], "overlap_sd": spread[1], "overlap_theory": said.overlap,
            })  # fmt: skip
    save_figure(figure(rows, f"N = {neurons}, r = {quality:g}"), Path(output) / "theory.png")
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows), ""]
    (Path(output) / "theory.csv").write_text("\n".join(lines))
    for name in ("eigenvalue", "overlap"):
        error = [100 * abs(r[name] / r[name + "_theory"] - 1) for r in rows if r["overlap_theory"] > 0.5]
        off = f"{sum(error) / len(error):.1f} % off on average, {max(error):.1f} % at most" if error else ""
        print(f"{name} where theory says an overlap above .5 ({len(error)} settings): {off}")


def simulate(neurons, quality, size, share, generator) -> tuple[float, float]:
    """Eigenvalue and squared overlap of the rare archetype in one batch."""
    archetypes = torch.where(torch.rand(2, neurons, generator=generator) < 0.5, 1.0, -1.0).double()
    which = (torch.arange(size) < max(1, round(share * size))).long()
    flips = torch.rand(size, neurons, generator=generator) < (1 - quality) / 2
    x = torch.where(flips, -archetypes[which], archetypes[which])
    values, vectors = torch.linalg.eigh(x.T @ x / x.numel())
    return float(values[-2]), float((vectors[:, -2] @ archetypes[1]) ** 2) / neurons


def figure(rows, title):
    """Both predictions over the share; lines are theory, points are means with standard deviations."""
    fig = new_figure(cols=2, title=title, xlabel="share of the examples")
    for size, color in zip(dict.fromkeys(r["examples"] for r in rows), OKABE_ITO, strict=False):
        mine = [r for r in rows if r["examples"] == size]
        for axes, name in zip(fig.axes, ("eigenvalue", "overlap"), strict=True):
            x, label = [r["share"] for r in mine], f"M = {size}"
            axes.plot(x, [r[name + "_theory"] for r in mine], "-", color=color, marker="", label=label)
            axes.errorbar(x, [r[name] for r in mine], [r[name + "_sd"] for r in mine], fmt="o", color=color)
    for axes, label in zip(fig.axes, ("second eigenvalue of J", "squared overlap"), strict=True):
        axes.set(xscale="log", ylabel=label)
    fig.axes[0].set_yscale("log")
    fig.axes[1].legend(title="line: theory")
    return fig


if __name__ == "__main__":
    run_function(theory, __file__)
