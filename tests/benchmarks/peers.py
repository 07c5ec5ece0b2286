"""The peers of ``bench_peers.py``, each attached to a net as its own documentation says, and ours.

A way of training that lives in a Lightning Trainer is a list of callbacks. One that replaces
``optimizer.step`` cannot live there (``bench_peers.py checks`` shows why), so it is called in a plain torch
loop after each backward pass. Nothing here needs a peer to be installed before it is asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelPruning
from torch import nn
from torch.nn.utils import prune

from lightning_plasticity.callbacks import GraNet, RigL, SparseTraining
from lightning_plasticity.sparsity import Cubic, Sparsifier

INSTALL = "pip install --no-deps --target PEERS {}, then run with PYTHONPATH=PEERS"  # they pin an old numpy
PACKAGES = {"sparsimony RigL": ("sparsimony", "sparsimony"), "rigl-torch RigL": ("rigl_torch", "rigl-torch")}


@dataclass(frozen=True)
class Plan:
    """What every way of training is asked to do.

    Attributes:
        update_every: optimizer steps between updates.
        epoch_steps: optimizer steps of an epoch, for the peer that knows epochs only.
        total_steps: optimizer steps of the run that the schedules are laid over.
        sparsity: share of the convolution and linear weights that shall be zero in the end.
        initial: share that is zero from the start, of those that prune.
    """

    update_every: int
    epoch_steps: int
    total_steps: int
    sparsity: float = 0.9
    initial: float = 0.0

    def amount(self, step: int, before: int) -> float:
        """What torch's pruning has to be asked for, a share of what is left, to follow GraNet's curve."""
        curve = Cubic(self.initial, self.sparsity, 0.0, 0.5)
        now, then = curve(before, self.total_steps), curve(step, self.total_steps)
        return (then - now) / (1.0 - now)


@dataclass
class Way:
    """A way of training, attached to a net.

    Attributes:
        callbacks: for the Trainer.
        step: for a plain loop, called after each backward pass.
        watched: owner and name of the functions that are its own work, to be timed.
        separable: whether they are all of its work (else some of it hides in the forward and backward pass).
    """

    callbacks: list[Callback] = field(default_factory=list)
    step: Callable[[], Any] | None = None
    watched: list[tuple[object, str]] = field(default_factory=list)
    separable: bool = False


def layers(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and modules of the convolutions and linear layers, whose weights everybody prunes here."""
    return [
        (name, module) for name, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)
    ]


def sizes(net: nn.Module) -> list[int]:
    """Weights of each of them."""
    return [module.weight.numel() for _, module in layers(net)]


@torch.no_grad()
def sparsity_of(net: nn.Module) -> float:
    """Share of those weights that are zero as the net uses them, whatever the parametrization."""
    for _, module in layers(net):
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, prune.BasePruningMethod):
                hook(module, None)  # the weight is computed there, so it is a step old
    return sum(int((module.weight == 0).sum()) for _, module in layers(net)) / sum(sizes(net))


def missing(name: str) -> str | None:
    """How to install what a way of training needs, or None if it is there."""
    module, package = PACKAGES.get(name, ("torch", "torch"))
    return None if find_spec(module) else INSTALL.format(package)


# ------------------------------------------------------------------------------------------- under a Trainer


def prune_globally(net: nn.Module, amount: float) -> None:
    """One call of torch's global unstructured pruning: ``amount`` is a share of what is left."""
    weights = [(module, "weight") for _, module in layers(net)]
    prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, amount=amount)


class TorchPrune(Callback):
    """Gradual pruning by ``torch.nn.utils.prune``, as one would write it: a call at every update."""

    def __init__(self, net: nn.Module, plan: Plan) -> None:
        self.net, self.plan = net, plan

    def update(self, amount: float) -> None:
        prune_globally(self.net, amount)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, every = trainer.global_step, self.plan.update_every
        if step % every == 0 and (amount := self.plan.amount(step, step - every)) > 0:
            self.update(amount)


def plain_trainer(net: nn.Module, plan: Plan) -> Way:
    return Way()


def model_pruning(net: nn.Module, plan: Plan) -> Way:
    """Lightning's ModelPruning: global unstructured L1 on the same weights, no lottery ticket, a schedule."""
    if plan.initial:
        prune_globally(net, plan.initial)

    def amount(epoch: int) -> float:
        return plan.amount((epoch + 1) * plan.epoch_steps, epoch * plan.epoch_steps)

    weights = [(module, "weight") for _, module in layers(net)]
    callback = ModelPruning("l1_unstructured", weights, amount=amount, use_lottery_ticket_hypothesis=False)
    return Way([callback], watched=[(callback, "apply_pruning")])


def torch_prune(net: nn.Module, plan: Plan) -> Way:
    if plan.initial:
        prune_globally(net, plan.initial)
    callback = TorchPrune(net, plan)
    return Way([callback], watched=[(callback, "update")])


def our_granet(plan: Plan) -> GraNet:
    return GraNet(plan.sparsity, plan.initial, plan.update_every, total_steps=plan.total_steps)


def our_rigl(plan: Plan) -> RigL:
    return RigL(plan.sparsity, plan.update_every, total_steps=plan.total_steps)


def _attached_to_trainer(callback: SparseTraining) -> Way:
    hooks = ("on_before_optimizer_step", "on_train_batch_start", "on_train_batch_end")
    own: list[tuple[object, str]] = [(Sparsifier, "begin"), (Sparsifier, "finish")]
    return Way([callback], watched=[*own, *((callback, name) for name in hooks)], separable=True)


TRAINER_WAYS: dict[str, Callable[[nn.Module, Plan], Way]] = {
    "plain Lightning": plain_trainer,
    "Lightning ModelPruning": model_pruning,
    "torch.nn.utils.prune": torch_prune,
    "ours: GraNet": lambda net, plan: _attached_to_trainer(our_granet(plan)),
    "ours: RigL": lambda net, plan: _attached_to_trainer(our_rigl(plan)),
}

# ------------------------------------------------------------------------------------------ in a plain loop


def plain_loop(net: nn.Module, optimizer: torch.optim.Optimizer, plan: Plan) -> Way:
    return Way(step=optimizer.step)


def sparsimony_rigl(net: nn.Module, optimizer: torch.optim.Optimizer, plan: Plan) -> Way:
    """sparsimony: RigL with ERK. Its re-initialisation is off, so that all start from the same weights."""
    from sparsimony.distributions.base import ERKDistribution
    from sparsimony.dst.rigl import RigL as Peer
    from sparsimony.schedulers.base import CosineDecayScheduler

    schedule = CosineDecayScheduler(0.3, t_end=round(0.75 * plan.total_steps), delta_t=plan.update_every)
    peer = Peer(schedule, ERKDistribution(), optimizer, sparsity=plan.sparsity, init_method=None)
    peer.prepare(net, [{"tensor_fqn": f"{name}.weight"} for name, _ in layers(net)])

    def step() -> None:
        optimizer.step()
        peer.step()

    return Way(step=step, watched=[(peer, "step")])


def rigl_torch(net: nn.Module, optimizer: torch.optim.Optimizer, plan: Plan, contiguous: bool = True) -> Way:
    """rigl-torch: uniform, always with a dense first layer; the others make up for it.

    It views gradients as vectors and fails where a convolution gives them in another memory format (on 8 x 8
    images some do), so they are made ``contiguous`` before it sees them.
    """
    from rigl_torch import RigL as module

    if contiguous:
        for _, layer in layers(net):
            layer.weight.register_hook(torch.Tensor.contiguous)
    first, total = sizes(net)[0], sum(sizes(net))
    peer = module.RigLScheduler(
        net,
        optimizer,
        dense_allocation=((1 - plan.sparsity) * total - first) / (total - first),
        T_end=round(0.75 * plan.total_steps),
        delta=plan.update_every,
        ignore_linear_layers=False,
    )

    def step() -> None:
        if peer():  # on a step that updates masks it takes no optimizer step
            optimizer.step()

    own: list[tuple[object, str]] = [(module.RigLScheduler, "__call__"), (module.IndexMaskHook, "__call__")]
    own += [(peer, "reset_momentum"), (peer, "apply_mask_to_weights")]
    return Way(step=step, watched=own, separable=True)


def _attached_to_loop(
    callback: SparseTraining, net: nn.Module, optimizer: torch.optim.Optimizer, plan: Plan
) -> Way:
    sparsifier = Sparsifier(net, callback.config, plan.total_steps)
    sparsifier.attach(optimizer)
    own = [(sparsifier, name) for name in ("begin", "before_step", "finish")]
    return Way(step=optimizer.step, watched=own, separable=True)


LOOP_WAYS: dict[str, Callable[[nn.Module, torch.optim.Optimizer, Plan], Way]] = {
    "plain torch loop": plain_loop,
    "sparsimony RigL": sparsimony_rigl,
    "rigl-torch RigL": rigl_torch,
    "ours: GraNet in a loop": lambda net, opt, plan: _attached_to_loop(our_granet(plan), net, opt, plan),
    "ours: RigL in a loop": lambda net, opt, plan: _attached_to_loop(our_rigl(plan), net, opt, plan),
}
