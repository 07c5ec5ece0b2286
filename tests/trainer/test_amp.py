"""Mixed precision: bf16 and fp16 with a gradient scaler, also where the scaler skips optimizer steps."""

import copy
from functools import partial

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from lightning_plasticity.callbacks import SET, GradualPruning, GraNet, RigL
from lightning_plasticity.sparsity import Constant
from tests.trainer.modules import ConvNet, Tape, adamw, loader, make_trainer, sgd

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
STEPS = 12
BAD = (3, 6, 7)
"""Attempted steps whose gradients are not finite: two are updates, one is followed by another."""

adam_fused = partial(torch.optim.Adam, lr=0.01, fused=True)
adamw_foreach = partial(torch.optim.AdamW, lr=0.01, foreach=True)


class Infected(ConvNet):
    """Puts a value into one gradient entry at chosen attempts, counted from 1."""

    bad, value, attempt = (), float("nan"), 0

    def on_after_backward(self):
        self.attempt += 1
        if self.attempt in self.bad:
            self.conv2.weight.grad.view(-1)[5] = self.value


class Tags(Tape):
    """Remembers the state of the callback after every attempt."""

    def __init__(self, sparse):
        super().__init__()
        self.sparse, self.states = sparse, []

    def on_train_batch_end(self, trainer, pl_module, *_):
        weights = {name: p.detach().cpu().clone() for name, p in pl_module.named_parameters()}
        self.states.append((copy.deepcopy(self.sparse.state_dict()["engines"][0]), weights))


def flatten(state):
    """An engine's state as comparable values."""
    tensors = {name: mask.tolist() for name, mask in state["masks"].items()}
    return state | {"masks": tensors, "generator": state["generator"].tolist()}


def scaler_plugin(device):
    """fp16 with a scaler on any device; it never grows, so that clean runs agree."""
    scaler = torch.amp.GradScaler(device, init_scale=2.0**10, growth_interval=10_000)
    return MixedPrecision("16-mixed", device, scaler)


def fit(module, sparse, device="cpu", batches=STEPS, **options):
    """Attempt some optimizer steps."""
    tags = Tags(sparse)
    trainer = make_trainer(
        [sparse, tags], accelerator=device, devices=1, max_epochs=1, max_steps=batches, **options
    )
    trainer.fit(module, loader(16 * batches))
    return tags.states


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("method", [partial(GraNet, 0.8, 0.0, 3, 0.0, 7), partial(RigL, 0.6, 3)])
def test_bf16(device, precision, method):
    module, sparse = ConvNet(adamw), method()
    states = fit(module, sparse, device, precision=precision)
    assert states[-1][0]["step"] == STEPS
    assert sparse.density == pytest.approx(0.2 if isinstance(sparse, GraNet) else 0.4, abs=1e-3)
    assert states[-1][0]["totals"]["grown"] > 0
    for name, mask in sparse.masks.items():
        weight = module.get_parameter(name)
        assert weight.dtype == (torch.bfloat16 if precision == "bf16-true" else torch.float32)
        assert not weight[~mask].any()
        assert weight[mask].any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("make", [sgd, adamw_foreach, adam_fused])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_step_that_the_scaler_skips_happens_nowhere(device, make, value):
    """Masks, counters, generator and schedule go on as if the skipped attempts had not been."""
    module, sparse = Infected(make), GraNet(0.8, update_every=3, prune_until=7, seed=3)
    module.bad, module.value = BAD, value
    states = fit(module, sparse, device, STEPS + len(BAD), plugins=[scaler_plugin(device)])
    steps = [state["step"] for state, _ in states]
    done = 0
    for attempt, (step, before, after) in enumerate(zip(steps, [None, *states], states, strict=False), 1):
        done += attempt not in BAD
        assert step == done
        if attempt in BAD:
            assert flatten(before[0]) == flatten(after[0])
            assert all(torch.equal(before[1][name], weight) for name, weight in after[1].items())
    updates = [step for step, *_ in states[-1][0]["history"]]
    assert updates == [0, 3, 6, 7, 9, 12]
    assert states[-1][0]["totals"]["skipped"] == 0
    for name, mask in sparse.masks.items():
        assert not module.get_parameter(name)[~mask].any()


@pytest.mark.parametrize("make", [sgd, adamw_foreach, adam_fused])
def test_the_scale_changes_no_choice(make):
    """A fused optimizer unscales inside its step, so growth reads scaled gradients, which rank alike."""
    runs = []
    for scale in (1.0, 2.0**10):
        module, sparse = ConvNet(make), RigL(0.6, update_every=3)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10_000)
        plugin = MixedPrecision("16-mixed", "cpu", scaler)
        plugin.autocast_context_manager = lambda: torch.autocast("cpu", enabled=False)
        fit(module, sparse, plugins=[plugin])
        runs.append((module, sparse.masks))
    assert all(torch.equal(mask, runs[1][1][name]) for name, mask in runs[0][1].items())


def test_a_target_missed_by_a_skipped_step_is_reached_in_the_next():
    module, sparse = Infected(sgd), GradualPruning(0.9, update_every=4, prune_until=8)
    module.bad = (8, 9)
    states = fit(module, sparse, batches=STEPS + 2, plugins=[scaler_plugin("cpu")])
    assert [step for step, *_ in states[-1][0]["history"]] == [0, 4, 8]
    assert sparse.density == pytest.approx(0.1, abs=1e-3)


def test_without_a_scaler_a_gradient_that_is_not_finite_skips_the_update_only():
    """Nothing holds the optimizer back then, so the step counts; masks stay."""
    module, sparse = Infected(sgd), SET(0.5, update_every=3, regrow_ratio=Constant(0.3))
    module.bad = (6,)
    with pytest.warns(UserWarning, match="step 6: gradients are not finite"):
        states = fit(module, sparse, batches=8)
    assert [state["step"] for state, _ in states] == list(range(1, 9))
    assert [step for step, *_ in states[-1][0]["history"]] == [0, 3]
    assert states[-1][0]["totals"]["skipped"] == 1
    assert flatten(states[4][0])["masks"] == flatten(states[5][0])["masks"]
