"""Where EntropyController's entropy comes from: the weights' own way, the predictions, or the module."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_plasticity.entropy import binary_entropy, predictive_entropy, sign_counts


class SlowWeights:
    """An exponential average over time of the weights, ``a <- m a + (1 - m) p``.

    ``p - a`` is the sum of past movements, each step weighing ``m`` times the next: the way the weights go.

    Args:
        memory: `m`, in [0, 1).
    """

    def __init__(self, memory: float) -> None:
        self.memory = memory
        self.average: dict[str, Tensor] = {}
        self.loaded: dict[str, Tensor] | None = None  # from a checkpoint, for the fit that goes on from it
        self._of: dict[Optimizer, dict[str, nn.Parameter]] = {}

    @torch.no_grad()
    def attach(self, parameters: Mapping[Optimizer, Mapping[str, nn.Parameter]]) -> None:
        """Start from the weights as they are, or go on from a loaded average of the same ones.

        Raises:
            MisconfigurationException: If a loaded average belongs to other parameters.
        """
        self._of = {optimizer: dict(named) for optimizer, named in parameters.items()}
        named = {name: p for own in self._of.values() for name, p in own.items()}
        loaded, self.loaded = self.loaded, None
        here = {name: tuple(p.shape) for name, p in named.items()}
        there = here if loaded is None else {name: tuple(a.shape) for name, a in loaded.items()}
        if here != there:
            different = sorted(n for n in here.keys() | there.keys() if here.get(n) != there.get(n))
            raise MisconfigurationException(
                f"EntropyController's stored average of the weights differs from the steered parameters in "
                f"{different}: resume with the model and the groups of the stored run"
            )
        self.average = {
            name: p.detach().clone() if loaded is None else loaded[name].to(p.device, copy=True)
            for name, p in named.items()
        }

    def pairs(self, optimizer: Optimizer) -> list[tuple[nn.Parameter, Tensor]]:
        """Weights that an optimizer moves, each with its average."""
        return [(p, self.average[name]) for name, p in self._of.get(optimizer, {}).items()]

    @torch.no_grad()
    def pull(self, optimizer: Optimizer, share: float) -> None:
        """Move the optimizer's weights this share of the way to their average."""
        if pairs := self.pairs(optimizer):
            torch._foreach_lerp_([p for p, _ in pairs], [average for _, average in pairs], share)

    @torch.no_grad()
    def update(self, optimizer: Optimizer) -> None:
        """Take in the optimizer's weights as they are now."""
        if pairs := self.pairs(optimizer):
            averages, weights = [average for _, average in pairs], [p.detach() for p, _ in pairs]
            torch._foreach_lerp_(averages, weights, 1 - self.memory)


class Signal(Protocol):
    """An entropy in [0, 1], read once per optimizer step."""

    def attach(self, module: LightningModule) -> list[RemovableHandle]:
        """Look up what the signal needs, at fit start."""

    def read(self, trainer: Trainer, optimizer: Optimizer) -> float | None:
        """The entropy now, equal on all ranks; None where there is nothing to tell."""

    def check_seen(self) -> None:
        """Complain after a batch in which nothing was seen that should have been."""


class AgreementSignal:
    """Binary entropy of the agreement between the weights' way so far and the step that gradients ask for.

    The share that agrees counts as 1/2 where it is below: moving all weights back is as new as can be.
    """

    def __init__(self, slow: SlowWeights) -> None:
        self.slow = slow

    def attach(self, module: LightningModule) -> list[RemovableHandle]:
        """Nothing: the controller attaches the slow average."""
        return []

    @torch.no_grad()
    def read(self, trainer: Trainer, optimizer: Optimizer) -> float | None:
        """From gradients that are already reduced over ranks; of the weights that this optimizer moves."""
        counts = [
            torch.stack(sign_counts(p.detach() - average, -p.grad))
            for p, average in self.slow.pairs(optimizer)
            if p.grad is not None
        ]
        if not counts:
            return None
        agreeing, compared = torch.stack(counts).sum(0)
        return _finite(binary_entropy((agreeing / compared).clamp(min=0.5)))

    def check_seen(self) -> None:
        """Nothing to miss."""


class PredictiveSignal:
    """Mean normalised entropy of the logits of the batches since the last optimizer step."""

    def __init__(self, logits_from: str | None) -> None:
        self.logits_from = logits_from
        self.total = torch.zeros(2)  # entropies summed, samples
        self.seen = False

    def attach(self, module: LightningModule) -> list[RemovableHandle]:
        """Listen to the module that returns logits."""
        try:
            source = module.get_submodule(self.logits_from) if self.logits_from else module
        except AttributeError as error:
            raise MisconfigurationException(
                f"logits_from='{self.logits_from}' is no submodule of {type(module).__name__}: {error}"
            ) from error
        self.total, self.seen = torch.zeros(2, device=module.device), False
        return [source.register_forward_hook(self._listen)]

    @torch.no_grad()
    def _listen(self, module: nn.Module, inputs: Any, logits: Any) -> None:
        if not module.training:
            return
        if not isinstance(logits, Tensor) or logits.dim() < 2 or not logits.is_floating_point():
            raise MisconfigurationException(
                f"signal='predictive' needs logits [batch, classes], {self.logits_from or 'forward'} gave a "
                f"{type(logits).__name__}: name the submodule that returns them with logits_from"
            )
        entropy = predictive_entropy(logits.detach().float(), normalize=True)
        self.total += torch.stack([entropy.sum(), entropy.new_tensor(entropy.numel())])
        self.seen = True

    def read(self, trainer: Trainer, optimizer: Optimizer) -> float | None:
        """Over all ranks, each sample once."""
        total = trainer.strategy.reduce(self.total.clone(), reduce_op="sum")
        self.total.zero_()
        assert isinstance(total, Tensor)
        return _finite(total[0] / total[1])

    def check_seen(self) -> None:
        """After a training batch there must have been logits."""
        if not self.seen:
            raise MisconfigurationException(
                f"signal='predictive' saw no logits in a training batch: "
                f"{self.logits_from or 'the LightningModule'} was not called. Call self(x) in training_step, "
                "or name the submodule that returns logits with logits_from='...'"
            )


class ModuleSignal:
    """The LightningModule's own ``plasticity_entropy``, averaged over ranks."""

    def attach(self, module: LightningModule) -> list[RemovableHandle]:
        """The module must have it."""
        if not hasattr(module, "plasticity_entropy"):
            raise MisconfigurationException(
                f"signal='module' needs an attribute plasticity_entropy on {type(module).__name__}: "
                "a number or 0-d tensor in [0, 1], or None while there is nothing to tell"
            )
        self.module = module
        return []

    def read(self, trainer: Trainer, optimizer: Optimizer) -> float | None:
        """Its mean over ranks; None if any rank has nothing to tell."""
        own = self.module.plasticity_entropy
        value = torch.as_tensor(math.nan if own is None else own, dtype=torch.float32).to(self.module.device)
        mean = trainer.strategy.reduce(value.detach(), reduce_op="mean")
        return _finite(torch.as_tensor(mean))

    def check_seen(self) -> None:
        """Nothing to miss."""


def _finite(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
