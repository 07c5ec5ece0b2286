"""Train one net one way, under a Trainer or in a plain loop, and listen: the runs of ``bench_peers.py``."""

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import torch
from lightning.pytorch import LightningModule, Trainer
from peers import Plan, Way
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from lightning_plasticity.models import create_model

Batch = tuple[Tensor, Tensor]
WARM_UP = 3


class Watcher:
    """Listens to a run: told when a step begins, when its gradients are there, and when all is over."""

    def watch(self, way: Way) -> None:
        """Get hold of the functions to be timed."""

    def begin_step(self) -> None:
        """A batch has come."""

    def after_backward(self) -> None:
        """The gradients are there, the optimizer has not stepped yet."""

    def end(self) -> None:
        """The last step of the epoch is done, with everything that belongs to it."""


class Speed(Watcher):
    """Seconds of every step, and of the watched functions within it (outermost calls)."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock, self.stack, self.inside = clock, ExitStack(), False
        self.marks: list[float] = []
        self.own: list[float] = []

    def watch(self, way):
        self.separable = way.separable
        self.separable = way.separable
        self.separable = way.separable
        for owner, name in way.watched:
            self.stack.enter_context(patch.object(owner, name, self._timed(getattr(owner, name))))

    def _timed(self, function):
        def timed(*args, **kwargs):
            if self.inside:
                return function(*args, **kwargs)
            self.inside, start = True, self.clock()
            try:
                return function(*args, **kwargs)
            finally:
                self.inside = False
                if self.own:
                    self.own[-1] += self.clock() - start

        return timed

    def begin_step(self):
        self.marks.append(self.clock())
        self.own.append(0.0)

    def end(self):
        self.marks.append(self.clock())
        self.stack.close()

    @property
    def step(self) -> float:
        """Seconds of a step, the update's share included."""
        return (self.marks[-1] - self.marks[WARM_UP]) / (len(self.own) - WARM_UP)

    @property
    def own_code(self) -> float:
        """Seconds a step spent in watched functions, the update included."""
        return statistics.mean(self.own[WARM_UP:])

    @property
    def update(self) -> float:
        """Seconds spent in watched functions in the step that updates masks, the longest."""
        return max(self.own[WARM_UP:])


class Memory(Watcher):
    """Bytes that a run adds, and the most it allocates at once between its last backward pass and its end.

    The first by the garbage collector (distinct storages of all tensors alive), the second by torch's
    profiler, which sees every allocation of torch.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.count, self.before, self.profiler = steps, 0, live_bytes(), None

    def begin_step(self):
        self.count += 1

    def after_backward(self):
        if self.count == self.steps:
            self.profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self.profiler.start()

    def end(self):
        self.profiler.stop()
        self.held = live_bytes() - self.before
        with tempfile.TemporaryDirectory() as folder:
            self.profiler.export_chrome_trace(trace := str(Path(folder, "trace.json")))
            events = json.loads(Path(trace).read_text())["traceEvents"]
        level = self.peak = 0
        for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
            level += event["args"]["Bytes"]
            self.peak = max(self.peak, level)


def live_bytes() -> int:
    """Bytes of the distinct storages of all tensors that Python can reach."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


# --------------------------------------------------------------------------------------------------- one run


def optimizer_and_schedule(net: nn.Module, total_steps: int):
    """SGD with Nesterov momentum and a cosine over the run, for everybody."""
    sgd = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    return sgd, torch.optim.lr_scheduler.CosineAnnealingLR(sgd, total_steps)


class Classifier(LightningModule):
    """Nothing but cross-entropy; its hooks run after those of the callbacks."""

    def __init__(self, net: nn.Module, total_steps: int, watcher: Watcher | None = None) -> None:
        super().__init__()
        self.net, self.total_steps, self.watcher = net, total_steps, watcher or Watcher()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer, schedule = optimizer_and_schedule(self.net, self.total_steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.watcher.begin_step()

    def on_after_backward(self) -> None:
        self.watcher.after_backward()

    def on_train_epoch_end(self) -> None:
        self.watcher.end()


def quiet_trainer(**options) -> Trainer:
    """A Trainer on the CPU that only trains."""
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", **(quiet | options))


def run_trainer(
    attach: Callable[..., Way],
    net: nn.Module,
    plan: Plan,
    batches: Iterable[Batch],
    watcher: Watcher,
    **length,
) -> None:
    """Train a net under Lightning, the given way attached to it."""
    way = attach(net, plan)
    watcher.watch(way)
    module = Classifier(net, plan.total_steps, watcher)
    quiet_trainer(callbacks=way.callbacks, **length).fit(module, batches)


def run_loop(
    attach: Callable[..., Way],
    net: nn.Module,
    plan: Plan,
    epochs: Iterable[Iterable[Batch]],
    watcher: Watcher,
) -> None:
    """Train a net in a plain torch loop, the given way attached to it."""
    optimizer, schedule = optimizer_and_schedule(net, plan.total_steps)
    way = attach(net, optimizer, plan)
    watcher.watch(way)
    net.train()
    for batches in epochs:
        for images, labels in batches:
            watcher.begin_step()
            optimizer.zero_grad()
            cross_entropy(net(images), labels).backward()
            watcher.after_backward()
            way.step()
            schedule.step()
    watcher.end()


def new_net(model: str, channels: int, seed: int = 0) -> nn.Module:
    """The same weights for everybody."""
    torch.manual_seed(seed)
    return create_model(model, 10, channels)
