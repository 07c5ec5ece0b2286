"""What EntropyController's plasticity does: scale the learning rate, pull weights back, tell the module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import LBFGS, Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_plasticity.callbacks.plasticity_signals import SlowWeights

Plasticity = Callable[[], float]


class Effect(Protocol):
    """Something that the plasticity changes."""

    def attach(
        self, module: LightningModule, optimizer: Optimizer, groups: Sequence[int], w: Plasticity
    ) -> list[RemovableHandle]:
        """Attach to one optimizer, at fit start; `groups`: positions of those that are steered."""

    def set(self, w: float) -> None:
        """Hear of a new plasticity."""


class LearningRate:
    """Steps with `w` times the scheduled rate, and puts the scheduled one back at once.

    Schedulers, some of which compute a rate from the last one, and LearningRateMonitor never see the product.
    A step that a gradient scaler skips runs no hook, so it leaves nothing behind either.
    """

    def attach(
        self, module: LightningModule, optimizer: Optimizer, groups: Sequence[int], w: Plasticity
    ) -> list[RemovableHandle]:
        """Hook before and after ``optimizer.step``.

        Raises:
            MisconfigurationException: For LBFGS, which reads its rate before the closure that w comes from.
        """
        if isinstance(optimizer, LBFGS):
            raise MisconfigurationException(
                "effect='learning_rate' cannot steer LBFGS, which reads its rate before gradients are there: "
                "use effect='consolidation', or another optimizer"
            )
        scheduled: list[Any] = []
        depth = 0  # a step that calls super().step() runs its hooks in both

        def scale() -> None:
            for index, rate in zip(groups, scheduled, strict=True):  # by index: loading makes new groups
                _set_rate(optimizer.param_groups[index], rate * w())

        def before(optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
            positional = len(args) > 1
            closure = args[1] if positional else kwargs.get("closure")
            nonlocal depth
            depth += 1
            if depth == 1:
                scheduled[:] = [_value(optimizer.param_groups[index]["lr"]) for index in groups]
            if closure is None:
                scale()
                return None

            def closure_then_scale() -> Any:  # gradients, and with them w, come into being in the closure
                loss = closure()
                scale()
                return loss

            if positional:
                return (args[0], closure_then_scale, *args[2:]), kwargs
            return args, {**kwargs, "closure": closure_then_scale}

        def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            nonlocal depth
            depth -= 1
            if depth:
                return
            for index, rate in zip(groups, scheduled, strict=True):
                _set_rate(optimizer.param_groups[index], rate)

        return [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]

    def set(self, w: float) -> None:
        """The hooks ask for it."""


class Consolidation:
    """After each step, weights go ``(1 - w) * pull`` of the way back to their slow average."""

    def __init__(self, slow: SlowWeights, pull: float) -> None:
        self.slow, self.share = slow, pull

    def attach(
        self, module: LightningModule, optimizer: Optimizer, groups: Sequence[int], w: Plasticity
    ) -> list[RemovableHandle]:
        """Hook after ``optimizer.step``."""

        def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            self.slow.pull(optimizer, (1 - w()) * self.share)

        return [optimizer.register_step_post_hook(after)]

    def set(self, w: float) -> None:
        """The hook asks for it."""


class ToModule:
    """Calls the LightningModule's ``set_plasticity(w)``."""

    _tell: Any = None

    def attach(
        self, module: LightningModule, optimizer: Optimizer, groups: Sequence[int], w: Plasticity
    ) -> list[RemovableHandle]:
        """The module must have the method."""
        self._tell = getattr(module, "set_plasticity", None)
        if not callable(self._tell):
            raise MisconfigurationException(
                f"effect='module' needs a method set_plasticity(w) on {type(module).__name__}; "
                "effect='learning_rate' works with any module"
            )
        return []

    def set(self, w: float) -> None:
        """Pass it on."""
        self._tell(w)


def _value(rate: Any) -> Any:
    return rate.clone() if isinstance(rate, Tensor) else rate


def _set_rate(group: dict[str, Any], rate: Any) -> None:
    """In place for a tensor, which compiled and captured optimizers hold on to."""
    if isinstance(group["lr"], Tensor):
        group["lr"].copy_(rate)
    else:
        group["lr"] = rate
