"""Local rules and EM as torch optimizers: they count steps, take schedulers, and live in checkpoints."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_plasticity.intrinsic import circuit, em, shapes
from lightning_plasticity.intrinsic.distribution import Parameters


def check_rates(lr: float, decay: float | None) -> None:
    """Refuse rates out of range.

    Raises:
        ValueError: naming the rate.
    """
    if not 0 < lr < 1:
        raise ValueError(f"lr={lr} must lie between 0 and 1: it is the share of the state that is replaced")
    if decay is not None and not decay > 0:
        raise ValueError(f"decay={decay} must be positive; infinity keeps the rate")


class CircuitPlasticity(Optimizer):
    """Online rules of the circuit (Monk, Savin and Luecke, NIPS 2016) as an optimizer.

    `step(closure)` calls the closure for the `circuit.Drive` of a mini-batch, computed at the rate `rate`,
    and changes the circuit in place. No gradient is involved.

    Args:
        params: weights `[C, D]`, mean, second moment and prior `[C]`, in this order.
        lr: `eps` at the beginning; a torch scheduler may change it.
        decay: stimuli after which the rate has halved, `eps / (1 + t / decay)`; None: 1000 for each class.
        shape_update: `"moments"` or `"gradient"`; compute the drive with the same setting.

    Raises:
        ValueError: if a setting is out of range, or `params` are not four tensors of those shapes.

    Example:
        >>> state = circuit.Circuit(torch.full((2, 3), 1 / 3), *(torch.ones(2) for _ in range(3)))
        >>> optimizer = CircuitPlasticity(state, lr=0.1)
        >>> stimuli = torch.tensor([[4.0, 0.0, 0.0]])
        >>> drive = optimizer.step(lambda: circuit.drive(stimuli, state, optimizer.rate))
        >>> state.weights.sum(1)
        tensor([1., 1.])
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = circuit.RATE,
        decay: float | None = None,
        shape_update: shapes.OnlineRule = "moments",
    ) -> None:
        check_rates(lr, decay)
        tensors = _four(params, "mean, second moment and prior")
        decay = circuit.DECAY_PER_CLASS * len(tensors[0]) if decay is None else decay
        super().__init__(tensors, {"lr": lr, "decay": decay})
        self.param_groups[0].update(seen=0.0, learn_prior=True)
        self.shape_update = shapes.check_online(shape_update)

    @property
    def rate(self) -> float:
        """`eps` of the next step."""
        group = self.param_groups[0]
        return circuit.learning_rate(group["seen"], group["lr"], group["decay"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Applies the drive that the closure returns, and returns it."""
        drive, group = _called(closure, circuit.Drive), self.param_groups[0]
        state = circuit.Circuit(*group["params"])
        changed = circuit.apply_drive(state, drive, self.rate, group["learn_prior"], self.shape_update)
        _assign(state, changed)
        group["seen"] += float(drive.weight)
        return drive


class ExpectationMaximization(Optimizer):
    """M steps of exact EM as an optimizer: `step(closure)` asks the closure for the `em.Sums` of a pass.

    Args:
        params: weights `[C, D]`, mean, shape and prior `[C]`, in this order.
        learning: what may change.

    Raises:
        ValueError: if `params` are not four tensors of those shapes.
    """

    def __init__(self, params: Iterable[Tensor], learning: em.Learning = em.EXACT) -> None:
        super().__init__(_four(params, "mean, shape and prior"), {"lr": 1.0})
        self.learning = learning

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Applies an M step to the sums that the closure returns, and returns them."""
        sums, params = _called(closure, em.Sums), Parameters(*self.param_groups[0]["params"])
        _assign(params, em.m_step(sums, params, self.learning))
        return sums


def _four(params: Iterable[Tensor], others: str) -> list[Tensor]:
    tensors = list(params)
    wrong = (
        len(tensors) != 4 or tensors[0].ndim != 2 or any(t.shape != tensors[0].shape[:1] for t in tensors[1:])
    )
    if wrong:
        shapes = [tuple(tensor.shape) for tensor in tensors]
        raise ValueError(f"params of shapes {shapes} must be weights [C, D], then {others} [C]")
    return tensors


def _called(closure: Callable[[], Any] | None, kind: type) -> Any:
    if closure is None:
        raise ValueError(f"step needs a closure that returns {kind.__name__}")
    result = closure()
    if not isinstance(result, kind):
        raise ValueError(f"the closure returned {type(result).__name__} instead of {kind.__name__}")
    return result


def _assign(old: Iterable[Tensor], new: Iterable[Tensor]) -> None:
    for target, value in zip(old, new, strict=True):
        target.copy_(value)
