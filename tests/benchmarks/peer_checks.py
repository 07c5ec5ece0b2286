"""What each peer of ``bench_peers.py`` gets wrong, measured, and the same asked of ours.

Every check trains a small net on real digits, prints what it found, and raises if ours fails.
"""

import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, ModelPruning
from peer_runs import (
    Classifier,
    Watcher,
    live_bytes,
    new_net,
    optimizer_and_schedule,
    quiet_trainer,
    run_loop,
)
from peers import LOOP_WAYS, Plan, layers, missing, prune_globally, rigl_torch, sizes, sparsity_of
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_plasticity.callbacks import GradualPruning, GraNet
from lightning_plasticity.data import ImageData
from lightning_plasticity.sparsity import Sparsifier, SparsityConfig
from lightning_plasticity.sparsity.schedules import Cubic

Loader = Any
small_net = partial(new_net, "small_convnet", 1)


def digits() -> Loader:
    """Real digits, 21 batches an epoch."""
    data = ImageData("digits", batch_size=64)
    data.setup()
    return data.train_dataloader()


def demand(fact: bool, claim: str) -> None:
    """Print what ours does, or raise."""
    if not fact:
        raise AssertionError(f"ours fails: {claim}")
    print(f"  ours    {claim}")


class SparsityLog(Callback):
    """Sparsity of the net before training, after every step and after every epoch."""

    def __init__(self) -> None:
        self.start, self.steps, self.epochs = 0.0, [], []

    def on_train_start(self, trainer, pl_module) -> None:
        self.start = sparsity_of(pl_module.net)

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self.steps.append(sparsity_of(pl_module.net))

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.epochs.append(sparsity_of(pl_module.net))


def model_pruning_of(net: nn.Module, amount: float, **options: Any) -> ModelPruning:
    """Lightning's callback on the convolutions and linear layers, the lottery ticket off."""
    weights = [(module, "weight") for _, module in layers(net)]
    return ModelPruning(
        "l1_unstructured", weights, amount=amount, use_lottery_ticket_hypothesis=False, **options
    )


def fit(net: nn.Module, callbacks: list[Callback], ckpt_path: str | None = None, **options: Any) -> None:
    """Train a net on the digits."""
    trainer = quiet_trainer(callbacks=callbacks, **options)
    trainer.fit(Classifier(net, 200), digits(), ckpt_path=ckpt_path)


def check_amount_compounds() -> None:
    """Lightning ModelPruning: ``amount`` is a share of what is left, so it compounds over epochs."""
    log, net = SparsityLog(), small_net()
    fit(net, [model_pruning_of(net, 0.5), log], max_epochs=4)
    print(f"  ModelPruning(amount=0.5), sparsity after each epoch: {[round(s, 4) for s in log.epochs]}")
    log, net = SparsityLog(), small_net()
    fit(net, [GradualPruning(0.5, update_every=10), log], max_epochs=4)
    found = [round(s, 4) for s in log.epochs]
    demand(found[-1] == 0.5, f"GradualPruning(sparsity=0.5), after each epoch: {found}")


def check_resume() -> None:
    """Lightning ModelPruning: its checkpoints hold no masks, so a resumed run trains a dense net."""
    for permanent in (True, False):
        net = small_net()
        attach = partial(model_pruning_of, amount=0.9, make_pruning_permanent=permanent)
        stored, log, error = stop_and_resume(net, attach(net), attach)
        masks = sum("mask" in key for key in stored["state_dict"])
        print(
            f"  ModelPruning(amount=0.9, make_pruning_permanent={permanent}): masks in the checkpoint {masks}"
        )
        if error:
            print(f"    resume fails: {error}")
        else:
            print(f"    sparsity {log.start:.4f} when loaded, {log.steps[0]:.4f} one step after resume")
    ours = GraNet(0.9, update_every=5, prune_until=20)
    stored, log, error = stop_and_resume(
        small_net(), ours, lambda _: GraNet(0.9, update_every=5, prune_until=20)
    )
    masks = sum(len(engine["masks"]) for engine in stored["callbacks"][ours.state_key]["engines"])
    found = (round(log.start, 3), round(log.steps[0], 3))
    claim = f"GraNet(sparsity=0.9): masks in the checkpoint {masks}, sparsity {found[0]:.4f} when loaded, "
    demand(not error and masks > 0 and found == (0.9, 0.9), f"{claim}{found[1]:.4f} one step after resume")


def stop_and_resume(
    net: nn.Module, callback: Callback, again: Callable[[nn.Module], Callback]
) -> tuple[dict[str, Any], SparsityLog, str]:
    """Train an epoch, store it by the default checkpoint, go on for another in a new process's manner."""
    with tempfile.TemporaryDirectory() as folder:
        saver = ModelCheckpoint(folder, filename="last")
        fit(net, [callback, saver], max_epochs=1, enable_checkpointing=True)
        path = str(Path(folder, "last.ckpt"))
        stored = torch.load(path, weights_only=True)
        log, fresh, error = SparsityLog(), small_net(1), ""
        try:
            fit(fresh, [again(fresh), log], path, max_epochs=2)
        except Exception as problem:
            error = f"{type(problem).__name__}: {' '.join(str(problem).split())[:150]}..."
        return stored, log, error


def check_torch_prune_memory() -> None:
    """torch.nn.utils.prune: keeps a further float mask at every update and renames parameters."""
    net = small_net()
    weights, names, before = sum(sizes(net)), list(net.state_dict())[:1], live_bytes()
    held = []
    for _ in range(8):
        prune_globally(net, 0.1)
        held.append((live_bytes() - before) / weights)
    print(f"  torch prune: bytes a weight after 1 to 8 updates: {', '.join(f'{b:.1f}' for b in held)}")
    renamed = [key for key in net.state_dict() if key.startswith(names[0].removesuffix("weight"))]
    print(f"  torch prune: {names} of the state dict has become {renamed}")
    net = small_net()
    optimizer, keys, loader = torch.optim.SGD(net.parameters(), 0.05), list(net.state_dict()), digits()
    before = live_bytes()
    config = SparsityConfig(Cubic(0.0, 0.9, 0, 8), regrow_ratio=0.3, update_every=1)
    sparsifier = Sparsifier(net, config, total_steps=8)
    sparsifier.attach(optimizer)
    held = []
    for _, (images, labels) in zip(range(8), loader, strict=False):
        cross_entropy(net(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        del images, labels
        held.append((live_bytes() - before) / weights)
    claim = f"bytes a weight after 1 to 8 updates: {', '.join(f'{b:.1f}' for b in held)}; names stay"
    demand(max(held) < 1.5 and list(net.state_dict()) == keys, claim)


class Attaching(Classifier):
    """Attaches a peer in ``configure_optimizers``, as the peers' examples do after making the optimizer."""

    def __init__(self, net: nn.Module, attach: Callable[..., Any], manual: bool, late_schedule: bool) -> None:
        super().__init__(net, 200)
        self.attach, self.late_schedule, self.automatic_optimization = attach, late_schedule, not manual

    def configure_optimizers(self):
        optimizer, schedule = optimizer_and_schedule(self.net, 200)
        self.attach(self.net, optimizer, Plan(5, 20, 200))
        if self.late_schedule:
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss


SITUATIONS = {
    "automatic optimization": (False, False),
    "manual optimization": (True, False),
    "a learning-rate schedule made after attaching": (False, True),
}


def outcome(attach: Callable[..., Any], manual: bool, late_schedule: bool) -> str:
    """How six steps under a Trainer end."""
    try:
        module = Attaching(small_net(), attach, manual, late_schedule)
        quiet_trainer(max_steps=6).fit(module, digits())
    except Exception as problem:
        line = traceback.extract_tb(problem.__traceback__)[-1]
        return f"{type(problem).__name__}: {problem} (in {Path(line.filename).name}, {line.name})"
    return f"runs, sparsity {sparsity_of(module.net):.4f}"


def check_optimizer_step() -> None:
    """sparsimony and rigl-torch replace ``optimizer.step`` by a function without arguments."""
    for name in ("sparsimony RigL", "rigl-torch RigL"):
        if hint := missing(name):
            print(f"  {name} is not installed: {hint}")
            continue
        for situation, (manual, late) in SITUATIONS.items():
            print(f"  {name} under a Trainer, {situation}: {outcome(LOOP_WAYS[name], manual, late)}")
    for situation, (manual, late) in SITUATIONS.items():
        found = outcome(LOOP_WAYS["ours: RigL in a loop"], manual, late)
        demand(found.startswith("runs, sparsity 0.9"), f"Sparsifier under a Trainer, {situation}: {found}")


def check_channels_last() -> None:
    """sparsimony and rigl-torch: end a run whose gradients come in another memory format (channels_last)."""
    bare = {**LOOP_WAYS, "rigl-torch RigL": partial(rigl_torch, contiguous=False)}
    for name in ("sparsimony RigL", "rigl-torch RigL", "ours: RigL in a loop"):
        if hint := missing(name):
            print(f"  {name} is not installed: {hint}")
            continue
        net, result = small_net().to(memory_format=torch.channels_last), "runs"
        try:
            run_loop(bare[name], net, Plan(3, 21, 200), [digits()], Watcher())
        except RuntimeError as problem:
            result = f"{type(problem).__name__}: {problem}"
        if name.startswith("ours"):
            demand(result == "runs", f"RigL on a net in channels_last: {result}")
        else:
            print(f"  {name} on a net in channels_last: {result}")


def reference_sparsity(updates: int, initial: float, final: float) -> float:
    """Where the curve of GraNet's published code ends: it stops one update before its end."""
    sparsity = initial
    for update in range(updates):  # "while update <= last - 1"
        sparsity = initial + (final - initial) * (1 - (1 - update / updates) ** 3)
    return sparsity


def check_reference_schedule() -> None:
    """GraNet's published code prunes while ``update <= last - 1``: it never reaches the target."""
    for updates in (2, 4, 8, 32, 128):
        end = reference_sparsity(updates, 0.0, 0.9)
        print(f"  reference, {updates:>3} updates from 0 to 0.9: ends at {end:.6f}, off by {0.9 - end:.1e}")
    log, net = SparsityLog(), small_net()
    fit(net, [GraNet(0.9, update_every=5, prune_until=20), log], max_steps=21)
    found = log.steps[20]
    total = sum(sizes(net))
    demand(abs(found - 0.9) * total <= 1, f"GraNet, 4 updates of 5 steps from 0 to 0.9: ends at {found:.6f}")


CHECKS = (
    check_amount_compounds, check_resume, check_torch_prune_memory, check_optimizer_step, check_channels_last,
    check_reference_schedule,
)  # fmt: skip


def run_checks() -> None:
    """Run all and print what is found."""
    for check in CHECKS:
        print(f"\n{check.__doc__}")
        check()
