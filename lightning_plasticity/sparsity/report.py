"""What a sparse run reports at its end: accuracy, density per layer, FLOPs, connections exchanged."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lightning_plasticity.sparsity.flops import Flops, FlopsRecorder
from lightning_plasticity.sparsity.sparsifier import Sparsifier, Update
from lightning_plasticity.sparsity.training_flops import training_flops

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = list[tuple[int, float, dict[str, float]]]
"""(optimizer step, density, accuracies) at the end of each validation."""


class SparsityReport:
    """Collects what only the run itself can tell: FLOPs of the layers, and accuracies over time."""

    def __init__(self) -> None:
        self.curve: Curve = []
        self.flops: Flops | None = None
        self._recorder: FlopsRecorder | None = None

    def watch_flops(self, model: nn.Module) -> None:
        """Count FLOPs in a forward pass that happens anyway, once; compiled models are left alone."""
        if self.flops is None and not any(is_compiled(module) for module in model.modules()):
            self._recorder = FlopsRecorder(model)

    def close_flops(self, batch_size: int | None = None) -> None:
        """Stop watching; cheap to call again."""
        if self._recorder is not None:
            self._recorder.close()
            self.flops = self._recorder.result(batch_size) if batch_size else None
            self._recorder = None

    def record(self, metrics: Mapping[str, Tensor], step: int, density: float) -> None:
        """Keep the accuracies among the metrics of a validation; those of training are an epoch old then."""
        found = {
            name: float(value)
            for name, value in metrics.items()
            if "acc" in name.lower() and not name.startswith("train") and value.numel() == 1
        }
        self.curve.append((step, density, found))

    def flop_shares(self, engines: Sequence[Sparsifier]) -> dict[str, float]:
        """FLOPs of the dense net, and the masked net's forward and training FLOPs as shares of it.

        Layers that are not masked count as dense. Training: see :func:`training_flops`. Empty if no forward
        pass was seen or masks belong to no counted layer.
        """
        density = {name: d for engine in engines for name, d in engine.layer_density.items()}
        layers = self.flops.dense_per_layer if self.flops else {}
        steps = max((engine.step for engine in engines), default=0)
        if density.keys().isdisjoint(layers) or not steps:
            return {}
        dense = sum(layers.values())
        sparse = sum(flops * density.get(name, 1.0) for name, flops in layers.items())
        growing = [
            step - 1
            for engine in engines
            if engine.config.grow != "random" and engine.plan.regrows
            for step, _ in engine.history
            if step
        ]
        trained = training_flops(layers, merged_history(engines), steps, dense_gradient_steps=growing)
        return {"dense": dense, "forward": sparse / dense, "training": trained / (3 * dense * steps)}

    def layers(self, engines: Sequence[Sparsifier]) -> list[dict[str, Any]]:
        """Each layer's number of units (weights, or filters), of active ones, and density."""
        return [
            {"layer": name, "size": size, "active": count, "density": count / size}
            for engine in engines
            for name, size, count in zip(engine.parameters, engine.plan.sizes, engine.counts, strict=True)
        ]

    def text(self, title: str, engines: Sequence[Sparsifier]) -> str:
        """The summary as text."""
        rows = [(row["layer"], row["size"], row["active"]) for row in self.layers(engines)]
        size, active = sum(row[1] for row in rows), sum(row[2] for row in rows)
        unit = "filters" if engines and not engines[0].config.pattern.has_unit_weights else "weights"
        width = max([5, *(len(name) for name, _, _ in rows)])
        lines = [f"{title}: density {density_of(engines):.4f} ({active:,} of {size:,} {unit} active)"]
        if self.curve and self.curve[-1][2]:
            lines.append("  " + ", ".join(f"{name} {value:.4f}" for name, value in self.curve[-1][2].items()))
        lines.append(f"  {'layer':<{width}} {unit:>12} {'active':>12} {'density':>8}")
        lines += [f"  {name:<{width}} {n:>12,} {count:>12,} {count / n:>8.4f}" for name, n, count in rows]
        if emptied := [name for name, _, count in rows if not count]:
            lines.append(
                f"  NOTHING passes {', '.join(emptied)}: all {unit} are pruned. Prune longer, scope='layer', "
                "or exclude=[...]"
            )
        if flops := self.flop_shares(engines):
            lines.append(
                f"  FLOPs: forward {flops['dense']:.4g} dense, x{flops['forward']:.3f} now; "
                f"training x{flops['training']:.3f} of dense"
            )
        if late := [e for e in engines if e.plan.is_behind(e.plan.total_steps, e.counts)]:
            lines.append(
                f"  NOT as sparse as asked: the run ended at step {late[0].step} of "
                f"{late[0].plan.total_steps}. Give total_steps=..., or an earlier prune_until"
            )
        total = {
            key: sum(getattr(e, key) for e in engines)
            for key in ("updates", "pruned", "dropped", "grown", "skipped")
        }
        plural = "" if total["updates"] == 1 else "s"
        lines.append(
            f"  {total['updates']} update{plural}: {total['pruned']:,} {unit} pruned, "
            f"{total['dropped']:,} dropped and {total['grown']:,} grown"
            + (f"; {total['skipped']} skipped (gradients not finite)" if total["skipped"] else "")
        )
        return "\n".join(lines)

    def figures(self, engines: Sequence[Sparsifier]) -> "dict[str, Figure]":
        """Density and accuracy over the run; density per layer."""
        from lightning_plasticity.sparsity import figures

        history = merged_history(engines)
        if not history:
            return {}
        sizes = {n: size for e in engines for n, size in zip(e.parameters, e.plan.sizes, strict=True)}
        total = sum(sizes.values())
        density = [(step, sum(d[n] * sizes[n] for n in sizes) / total) for step, d in history]
        names = sorted({name for _, _, found in self.curve for name in found})
        accuracies = {n: [(step, found[n]) for step, _, found in self.curve if n in found] for n in names}
        return {
            "density_over_run": figures.density_over_run(density, accuracies),
            "density_per_layer": figures.density_per_layer(history[0][1], history[-1][1], sizes),
        }


def density_of(engines: Sequence[Sparsifier]) -> float:
    """Share of active units over the layers of all engines; 1 if there are none."""
    sizes = sum(sum(engine.plan.sizes) for engine in engines)
    return sum(sum(engine.counts) for engine in engines) / sizes if sizes else 1.0


def numbers_to_log(engines: Sequence[Sparsifier], updates: Sequence[Update]) -> dict[str, float]:
    """The state, and what the last updates did, under stable keys ``sparsity/...``."""
    numbers = {
        "sparsity/density": density_of(engines),
        "sparsity/skipped_updates": float(sum(engine.skipped for engine in engines)),
    }
    if updates:
        for key in ("pruned", "dropped", "grown"):
            numbers[f"sparsity/{key}"] = float(sum(getattr(update, key) for update in updates))
        shares = [(e, sum(engine.plan.sizes)) for engine in engines if (e := engine.exploration) is not None]
        if shares:
            numbers["sparsity/exploration"] = sum(e * n for e, n in shares) / sum(n for _, n in shares)
    return numbers


def merged_history(engines: Sequence[Sparsifier]) -> list[tuple[int, dict[str, float]]]:
    """(step, layer densities) at every step at which any engine changed masks."""
    changes = sorted({step for engine in engines for step, _ in engine.history})
    merged: list[tuple[int, dict[str, float]]] = []
    position = [0] * len(engines)
    for step in changes:
        densities: dict[str, float] = {}
        for index, engine in enumerate(engines):
            while (
                position[index] + 1 < len(engine.history) and engine.history[position[index] + 1][0] <= step
            ):
                position[index] += 1
            counts = engine.history[position[index]][1]
            densities |= {
                n: c / s for n, c, s in zip(engine.parameters, counts, engine.plan.sizes, strict=True)
            }
        merged.append((step, densities))
    return merged


def is_compiled(module: nn.Module) -> bool:
    """Whether a module was given to ``torch.compile``."""
    compiled = module._compiled_call_impl is not None or type(module).__name__ == "OptimizedModule"
    return compiled or getattr(module, "_compiler_ctx", None) is not None
