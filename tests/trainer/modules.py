"""Small real LightningModules, data and listeners for the tests of callbacks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import lightning.pytorch as L
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

MakeOptimizer = Callable[[Any], Optimizer]


def sgd(parameters: Any) -> Optimizer:
    """SGD with momentum and weight decay."""
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3)


def adamw(parameters: Any) -> Optimizer:
    """AdamW."""
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)


@lru_cache
def _bunch() -> Any:
    return load_digits()


def digits(count: int, start: int = 0) -> TensorDataset:
    """Real handwritten digits, 8 x 8."""
    bunch = _bunch()
    images = torch.tensor(bunch.images[start : start + count], dtype=torch.float32)[:, None] / 16
    return TensorDataset(images, torch.tensor(bunch.target[start : start + count]))


def loader(count: int = 64, batch_size: int = 16, start: int = 0, **options: Any) -> DataLoader:
    """Digits in batches, in order unless told otherwise."""
    return DataLoader(digits(count, start), batch_size, **options)


def make_trainer(callbacks: Sequence[L.Callback] = (), **options: Any) -> L.Trainer:
    """A quiet Trainer on the CPU."""
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return L.Trainer(callbacks=list(callbacks), **(quiet | options))


class ConvNet(L.LightningModule):
    """Three convolutions and a classifier.

    Args:
        optimizer: Makes the optimizer.
        norm: Whether BatchNorm follows the convolutions.
        dropout: Share of features dropped in training.
        seed: Seed of the weights.
        milestones: Epochs at which the learning rate drops tenfold.
    """

    def __init__(
        self,
        optimizer: MakeOptimizer = sgd,
        norm: bool = False,
        dropout: float = 0.0,
        seed: int = 0,
        milestones: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.make_optimizer, self.milestones = optimizer, list(milestones)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
            self.conv3, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 10)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.conv1(images))
        x = F.relu(self.norm(self.conv2(F.max_pool2d(x, 2))))
        return self.head(self.dropout(F.relu(self.conv3(x)).mean((2, 3))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.parameters())
        if not self.milestones:
            return optimizer
        return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, self.milestones, 0.1)]


class ScoredNet(ConvNet):
    """The same net, which logs an accuracy in validation."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch[0])
        self.log("val/accuracy", (logits.argmax(1) == batch[1]).float().mean())


class ManualNet(ConvNet):
    """The same net under manual optimization."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class TwoPlayers(L.LightningModule):
    """Two nets with an optimizer each under manual optimization; the second steps every other batch."""

    def __init__(self, optimizer: MakeOptimizer = sgd) -> None:
        super().__init__()
        self.automatic_optimization, self.make_optimizer = False, optimizer
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
            self.second = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()
        for player, optimizer in ((self.first, first), (self.second, second)):
            if player is self.first or batch_idx % 2:
                optimizer.zero_grad()
                self.manual_backward(F.cross_entropy(player(batch[0].flatten(1)), batch[1]))
                optimizer.step()

    def configure_optimizers(self) -> list[Optimizer]:
        return [self.make_optimizer(self.first.parameters()), self.make_optimizer(self.second.parameters())]


class Noisy(Optimizer):
    """Gradient descent that moves every weight by itself at every ``every``-th step, masked or not."""

    def __init__(self, parameters: Any, lr: float = 0.1, every: int = 1) -> None:
        super().__init__(parameters, {"lr": lr})
        self.every, self.calls, self.generator = every, 0, torch.Generator().manual_seed(1)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:
        with torch.enable_grad():
            loss = closure()
        self.calls += 1
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(p.grad, alpha=-group["lr"])
                if self.calls % self.every == 0:
                    p.add_(torch.randn(p.shape, generator=self.generator), alpha=0.01)
        return loss


class Decorated(torch.optim.SGD):
    """Calls its parent's ``step``, so that torch runs every hook of a step twice."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        return super().step(closure)


def clone_state(optimizers: Sequence[Optimizer], parameter: Tensor) -> list[Tensor]:
    """Copies of every optimizer-state tensor of the parameter's shape."""
    held = [optimizer.state[parameter] for optimizer in optimizers if parameter in optimizer.state]
    return [
        v.clone()
        for state in held
        for v in state.values()
        if torch.is_tensor(v) and v.shape == parameter.shape
    ]


@dataclass
class Frame:
    """One optimizer step: what an update is made of, and what it left."""

    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]
    state: dict[str, list[Tensor]]
    masks: dict[str, Tensor] = field(default_factory=dict)
    weights_after: dict[str, Tensor] = field(default_factory=dict)
    state_after: dict[str, list[Tensor]] = field(default_factory=dict)


class Tape(L.Callback):
    """Put before a sparse training callback, records each step around its update."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self._open: Frame | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._watch(pl_module, trainer.optimizers)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.read_gradients()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.close({name: m for c in trainer.callbacks if hasattr(c, "masks") for name, m in c.masks.items()})

    def _watch(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        self._named, self._optimizers = dict(model.named_parameters()), list(optimizers)
        for optimizer in optimizers:
            optimizer.register_step_post_hook(lambda *_: self._stepped())

    def watch(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Listen to a plain loop; call before ``Sparsifier.attach``, and :meth:`close` after each step."""
        optimizer.register_step_pre_hook(lambda *_: self.read_gradients())
        self._watch(model, [optimizer])

    def read_gradients(self) -> None:
        self._gradients = {n: p.grad.detach().clone() for n, p in self._named.items() if p.grad is not None}

    def _stepped(self) -> None:
        self._open = Frame(self._gradients, self._weights(), self._state())
        self.frames.append(self._open)

    def close(self, masks: dict[str, Tensor]) -> None:
        """Record what the update left."""
        if self._open is not None:
            self._open.masks = {name: mask.clone() for name, mask in masks.items()}
            self._open.weights_after, self._open.state_after = self._weights(), self._state()
            self._open = None

    def _weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self._named.items()}

    def _state(self) -> dict[str, list[Tensor]]:
        return {name: clone_state(self._optimizers, p) for name, p in self._named.items()}
