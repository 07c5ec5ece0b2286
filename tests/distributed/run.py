"""One training run, in one process or as one of two, and what it is watched for."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from lightning_plasticity.callbacks import SET, GraNet, RigL, SparseTraining, StaticSparsity
from lightning_plasticity.sparsity.granularity import Granularity
from lightning_plasticity.sparsity.masks import unpack_mask
from tests.trainer.modules import digits, make_trainer, sgd

STEPS, BATCH = 18, 16

METHODS: dict[str, Callable[[], SparseTraining]] = {
    "granet": lambda: GraNet(0.8, update_every=3, prune_until=8),
    "rigl": lambda: RigL(0.6, update_every=3),
    "set": lambda: SET(0.6, update_every=3),
    "granet_2_4": lambda: GraNet(
        0.5, update_every=3, prune_until=8, granularity="2:4", include=["conv2", "conv3"]
    ),
    "granet_filters": lambda: GraNet(0.5, update_every=3, prune_until=8, granularity="filter"),
    "magnitude": lambda: StaticSparsity(0.7, initial="magnitude"),
}


class Uneven(L.LightningModule):
    """Layers that two processes cannot halve: 7 filters, and a single output, of which one gets nothing.

    Args:
        seed: Seed of the weights.
        optimizer: Makes the optimizer.
        sharded: Whether FSDP2 cuts the parameters.
        nan_at: Optimizer step and rank at which a gradient is not finite.
    """

    def __init__(
        self,
        seed: int = 0,
        optimizer: Any = sgd,
        sharded: bool = False,
        nan_at: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.make_optimizer, self.sharded, self.nan_at = optimizer, sharded, nan_at
        torch.manual_seed(seed)
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.conv3, self.head, self.gate = nn.Conv2d(8, 7, 3, padding=1), nn.Linear(7, 10), nn.Linear(7, 1)
        self.double()

    def configure_model(self) -> None:
        if self.sharded and not isinstance(self.conv1.weight, DTensor):
            from torch.distributed.fsdp import fully_shard

            mesh = self.device_mesh["data_parallel"]
            for layer in (self.conv1, self.conv2, self.conv3, self.head, self.gate):
                fully_shard(layer, mesh=mesh)
            fully_shard(self, mesh=mesh)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.max_pool2d(F.relu(self.conv1(images)), 2)))
        x = F.relu(self.conv3(x)).mean((2, 3))
        return self.head(x) * torch.sigmoid(self.gate(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0].to(self.dtype)), batch[1])
        if self.nan_at == (self.trainer.global_step + 1, self.global_rank):
            loss = loss * float("nan")
        return loss

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.parameters())


class Traffic(TorchDispatchMode):
    """Records what every collective carries: (operation, dtype, entries of the largest tensor)."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional", "c10d_functional") and "wait" not in func.name():
            tensors = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            largest = max(tensors, key=Tensor.numel)
            self.calls.append((func.name(), str(largest.dtype), largest.numel()))
        return func(*args, **(kwargs or {}))


@contextmanager
def full_tensors(seen: list[int]) -> Iterator[None]:
    """Record the size of every tensor that is put together from its shards."""
    original = DTensor.full_tensor

    def record(self: DTensor, *args: Any, **options: Any) -> Tensor:
        seen.append(self.numel())
        return original(self, *args, **options)

    DTensor.full_tensor = record
    try:
        yield
    finally:
        DTensor.full_tensor = original


class Watch(L.Callback):
    """Put after a sparse callback: records masks, what its steps send, and what it assembles from shards."""

    def __init__(self, sparse: SparseTraining) -> None:
        self.sparse, self.traffic, self.full = sparse, Traffic(), []
        self.masks: list[dict[str, Tensor]] = []
        self.recorded = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._record()
        for _, engine in self.sparse._engines:
            engine.before_step = self._listened(engine.before_step)
            engine.finish = self._listened(engine.finish)

    def _listened(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            with self.traffic, full_tensors(self.full):
                return method(*args)

        return call

    def on_train_batch_end(self, *_: Any) -> None:
        latest = self.sparse._engines[0][1].history[-1][0]
        if latest > self.recorded:
            self.recorded = latest
            self._record()

    def _record(self) -> None:
        """Whole masks, read from the state, which is the same on every process."""
        pattern, whole = Granularity.parse(self.sparse.config.pattern), {}
        for _, engine in self.sparse._engines:
            state = engine.state_dict()
            for name, packed in state["masks"].items():
                shape = engine.plan.shapes[name]
                whole[name] = unpack_mask(packed, pattern.mask_shape(shape)).expand(shape).clone()
        self.masks.append(whole)


class SaveAt(L.Callback):
    """Saves a checkpoint after one optimizer step."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def train(
    sparse: SparseTraining,
    module: Uneven,
    strategy: Any = "auto",
    ranks: int = 1,
    extra: Any = (),
    ckpt_path: Any = None,
    steps: int = STEPS,
    alike: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """One run with a global batch of 16, in double precision: only rounding tells processes apart."""
    watch = Watch(sparse)
    trainer = make_trainer(
        [sparse, watch, *extra],
        strategy=strategy,
        devices=ranks,
        use_distributed_sampler=False,  # it shuffles
        max_steps=steps,
        max_epochs=-1,
        **options,
    )
    rank = int(os.environ["RANK"]) if ranks > 1 else 0
    images, labels = digits(64).tensors
    if alike:  # a run that resumes inside an epoch starts its data anew
        images, labels = images[:BATCH].repeat(4, 1, 1, 1), labels[:BATCH].repeat(4)
    mine = TensorDataset(images[rank::ranks], labels[rank::ranks])
    trainer.fit(module, DataLoader(mine, BATCH // ranks), ckpt_path=ckpt_path)
    weights = {name: p.detach() for name, p in module.named_parameters()}
    engine = sparse._engines[0][1]
    return {
        "masks": watch.masks,
        "traffic": watch.traffic.calls,
        "full": watch.full,
        "weights": {
            n: (w.full_tensor() if isinstance(w, DTensor) else w).clone() for n, w in weights.items()
        },
        "updates": engine.updates,
        "skipped": engine.skipped,
        "step": engine.step,
    }
