"""EntropyController: how plastic a net shall be, steered by an entropy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from lightning_plasticity.callbacks.plasticity_effects import Consolidation, Effect, LearningRate, ToModule
from lightning_plasticity.callbacks.plasticity_signals import (
    AgreementSignal,
    ModuleSignal,
    PredictiveSignal,
    Signal,
    SlowWeights,
)
from lightning_plasticity.callbacks.sparse_training import SparseTraining
from lightning_plasticity.callbacks.support import callbacks_of
from lightning_plasticity.strategies import check_unsharded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 2000  # of the curve that is kept, at most


class EntropyController(Callback):
    r"""Steers stability against plasticity by an entropy (after Alessandrelli et al., 2026, controller).

    At every optimizer step an entropy `H` in [0, 1] says how new or unsure the present data look, and

    .. math:: w \leftarrow s\,w + (1 - s)\,[\text{floor} + (\text{ceiling} - \text{floor})\,
        \mathrm{clip}((H - l)/(h - l), 0, 1)]

    sets the plasticity `w`: near `ceiling` the net learns freely, near `floor` it keeps what it has.

    Signals, the entropy `H`:

    - `"agreement"`: binary entropy (bits) of the share of weights that the present gradient would move the
      way they have been moving (away from a slow average of theirs). All agree: 0. No relation, or the
      opposite way: 1. The paper's rule, for weights in place of Hebbian operators.
    - `"predictive"`: mean entropy of the softmax of the training batch's logits, over its largest value.
      Logits are what the LightningModule's `forward` returns, or the submodule `logits_from`.
    - `"module"`: the LightningModule's own `plasticity_entropy`, a number or 0-d tensor.

    Effects, what `w` does:

    - `"learning_rate"`: the step is made with `w` times the scheduled learning rate; schedulers and monitors
      go on seeing the scheduled one.
    - `"consolidation"`: after each step weights go `(1 - w) * pull` of the way back to their slow average.
    - `"module"`: calls the LightningModule's `set_plasticity(w)`.

    Logs `plasticity/entropy` and `plasticity/w`. An entropy that is not finite (an overflowing fp16 step, a
    gradient of zeros) leaves `w` as it was. With `"agreement"` and `"consolidation"` the slow average of the
    weights is kept, one more copy of them, also in checkpoints.

    Args:
        signal: Where the entropy comes from.
        effect: What the plasticity does.
        floor: Plasticity at entropies of `entropy_range[0]` and below, in [0, 1].
        ceiling: Plasticity at entropies of `entropy_range[1]` and above, at least `floor`.
        entropy_range: `(l, h)` above; None: (0, 1) but for `"agreement"`, where batches are so noisy that the
            entropy never leaves (0.9, 1).
        smoothing: `s` above, in [0, 1).
        memory: How much of the slow average of the weights stays at a step, in [0, 1).
        groups: Names of the parameter groups (their key `"name"`) to steer; None: all.
        logits_from: Path of the submodule that returns logits, such as `"net.head"`; None: the module.
        pull: Share of the way back at `w = 0`, in (0, 1].

    Raises:
        MisconfigurationException: At construction for values out of range; at fit start for groups,
            submodules or attributes that do not exist; after the first batch if no logits were seen.

    >>> controller = EntropyController(signal="predictive", floor=0.2, groups=["adapter"])
    """

    def __init__(
        self,
        signal: Literal["agreement", "predictive", "module"] = "agreement",
        effect: Literal["learning_rate", "consolidation", "module"] = "learning_rate",
        floor: float = 0.1,
        ceiling: float = 1.0,
        entropy_range: tuple[float, float] | None = None,
        smoothing: float = 0.9,
        memory: float = 0.99,
        groups: Sequence[str] | None = None,
        logits_from: str | None = None,
        pull: float = 0.1,
    ) -> None:
        low, high = entropy_range or ((0.9, 1.0) if signal == "agreement" else (0.0, 1.0))
        _require(0 <= floor <= ceiling, "floor", floor, f"must lie in [0, ceiling={ceiling}]")
        _require(ceiling > 0, "ceiling", ceiling, "must be above 0: at 0 nothing would ever learn")
        _require(0 <= low < high <= 1, "entropy_range", (low, high), "must be two numbers 0 <= l < h <= 1")
        _require(0 <= smoothing < 1, "smoothing", smoothing, "must lie in [0, 1); 0 does not smooth")
        _require(0 <= memory < 1, "memory", memory, "must lie in [0, 1), e.g. 0.99")
        _require(0 < pull <= 1, "pull", pull, "must lie in (0, 1]")
        _require(
            logits_from is None or signal == "predictive",
            "logits_from",
            logits_from,
            f"belongs to signal='predictive', not to {signal!r}",
        )
        needs_slow = signal == "agreement" or effect == "consolidation"
        _require(needs_slow or memory == 0.99, "memory", memory, "belongs to 'agreement' and 'consolidation'")
        _require(
            effect == "consolidation" or pull == 0.1,
            "pull",
            pull,
            f"belongs to effect='consolidation', not to {effect!r}",
        )
        self.floor, self.ceiling, self.entropy_range = floor, ceiling, (low, high)
        self.smoothing = smoothing
        self.groups = None if groups is None else list(groups)
        slow = SlowWeights(memory)
        self.slow = slow if needs_slow else None
        self.signal: Signal = _choose("signal", signal, {
            "agreement": lambda: AgreementSignal(slow),
            "predictive": lambda: PredictiveSignal(logits_from),
            "module": ModuleSignal,
        })  # fmt: skip
        self.effect: Effect = _choose("effect", effect, {
            "learning_rate": LearningRate,
            "consolidation": lambda: Consolidation(slow, pull),
            "module": ToModule,
        })  # fmt: skip
        self._handles: list[Any] = []
        self._resumes = False
        self._start_anew()

    def _start_anew(self) -> None:
        self.entropy: float | None = None
        self.w = self.ceiling
        self.curve: list[list[float]] = []
        self._stride = 1

    # ------------------------------------------------------------------------------------------- the run

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks everything up that was named, and attaches to the optimizers."""
        self._check_run(trainer)
        if not self._resumes:  # one callback may serve several fits
            self._start_anew()
        self._resumes = False
        steered = self._steered(trainer)
        names = {id(p): name for name, p in pl_module.named_parameters() if p.requires_grad}
        if self.slow is not None:
            self.slow.attach(
                {
                    optimizer: {
                        names[id(p)]: p
                        for index in groups
                        for p in optimizer.param_groups[index]["params"]
                        if id(p) in names
                    }
                    for optimizer, groups in steered.items()
                }
            )
        self._handles += self.signal.attach(pl_module)
        for optimizer, groups in steered.items():
            self._handles += self.effect.attach(pl_module, optimizer, groups, lambda: self.w)
            if self.slow is not None:
                self._handles.append(optimizer.register_step_post_hook(self._after_step))

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self.slow is not None:
            self.slow.update(optimizer)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Reads the entropy, with gradients as they are before clipping, and sets the plasticity."""
        entropy = self.signal.read(trainer, optimizer)
        if entropy is None:
            return
        low, high = self.entropy_range
        share = min(max((entropy - low) / (high - low), 0.0), 1.0)
        wanted = self.floor + (self.ceiling - self.floor) * share
        self.w = self.smoothing * self.w + (1 - self.smoothing) * wanted
        self.entropy = entropy
        self.effect.set(self.w)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs what the last step used."""
        self.signal.check_seen()
        if self.entropy is None:
            return
        pl_module.log("plasticity/entropy", self.entropy, batch_size=1)
        pl_module.log("plasticity/w", self.w, prog_bar=True, batch_size=1)
        self._remember(trainer.global_step)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets go of the module and the optimizers."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def figures(self) -> Mapping[str, Figure]:
        """Entropy and plasticity over the run, for FigureLogger."""
        from lightning_plasticity.figures import legend_below, new_figure

        title = "How new the signal is, and the plasticity that follows"
        figure = new_figure(title=title, xlabel="optimizer step", ylabel="entropy, plasticity")
        axes = figure.axes[0]
        steps, entropies, ws = zip(*self.curve, strict=True) if self.curve else ((), (), ())
        axes.plot(steps, entropies, label="entropy of the signal", linewidth=0.8)
        axes.plot(steps, ws, label="plasticity w")
        axes.set_ylim(0, max(1.05, 1.05 * self.ceiling))
        legend_below(axes)
        return {"plasticity": figure}

    # ------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Plasticity, the slow average of the weights, and the curve."""
        return {
            "w": self.w,
            "entropy": self.entropy,
            "curve": [list(point) for point in self.curve],
            "stride": self._stride,
            "slow_weights": {} if self.slow is None else dict(self.slow.average),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there."""
        self.w, self.entropy = state_dict["w"], state_dict["entropy"]
        self.curve = [list(point) for point in state_dict["curve"]]
        self._stride = state_dict["stride"]
        if self.slow is not None:
            self.slow.loaded = dict(state_dict["slow_weights"])
        self._resumes = True

    # ------------------------------------------------------------------------------------------- within

    def _check_run(self, trainer: Trainer) -> None:
        check_unsharded(trainer, "gradients, weights or steps are not whole at the moment they are read")
        if isinstance(self.effect, Consolidation) and any(
            isinstance(callback, SparseTraining) for callback in callbacks_of(trainer)
        ):
            raise MisconfigurationException(
                "EntropyController(effect='consolidation') beside sparse training would bring masked weights "
                "back from their average: use effect='learning_rate'"
            )

    def _steered(self, trainer: Trainer) -> dict[Optimizer, list[int]]:
        """Positions of the parameter groups to steer, by optimizer."""
        optimizers: list[Optimizer] = trainer.optimizers
        if self.groups is None:
            return {optimizer: list(range(len(optimizer.param_groups))) for optimizer in optimizers}
        known = [str(group.get("name")) for optimizer in optimizers for group in optimizer.param_groups]
        if missing := [name for name in self.groups if name not in known]:
            raise MisconfigurationException(
                f"groups={missing} name no parameter group; the optimizers have {known}. Give each group a "
                "'name' in configure_optimizers, or leave groups out to steer all."
            )
        return {
            optimizer: chosen
            for optimizer in optimizers
            if (
                chosen := [
                    i for i, group in enumerate(optimizer.param_groups) if group.get("name") in self.groups
                ]
            )
        }

    def _remember(self, step: int) -> None:
        if step % self._stride or (self.curve and self.curve[-1][0] == step):
            return
        self.curve.append([step, float(self.entropy or 0.0), self.w])
        if len(self.curve) > POINTS:
            self.curve, self._stride = self.curve[1::2], 2 * self._stride


def _require(condition: bool, argument: str, value: Any, way_out: str) -> None:
    if not condition:
        raise MisconfigurationException(f"EntropyController: {argument}={value} {way_out}")


def _choose(argument: str, value: str, choices: Mapping[str, Callable[[], Any]]) -> Any:
    _require(value in choices, argument, repr(value), f"must be one of {sorted(choices)}")
    return choices[value]()
