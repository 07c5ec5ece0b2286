"""EntropyController under a Trainer: what it reads, what it does, what it leaves alone."""

import math
from itertools import pairwise

import lightning.pytorch as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lightning_plasticity.callbacks import EntropyController, GraNet
from tests.trainer.modules import digits, loader, make_trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore:You're resuming from a checkpoint that ended before the epoch"
)


class Net(L.LightningModule):
    """A linear classifier with two named groups, and an entropy of its own."""

    def __init__(self, make=None, milestones=()):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.body, self.head = nn.Linear(64, 16), nn.Linear(16, 10)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) / 5)
        self.make = make or (lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9))
        self.milestones = list(milestones)
        self.plasticity_entropy = 0.5
        self.told = []

    def set_plasticity(self, w):
        self.told.append(w)

    def forward(self, images):
        return self.head(self.body(images.flatten(1)).relu())

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        groups = [
            {"params": self.body.parameters(), "name": "body"},
            {"params": self.head.parameters(), "name": "head"},
        ]
        optimizer = self.make(groups)
        if not self.milestones:
            return optimizer
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, self.milestones)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(module, callback, steps=8, ckpt_path=None, data=None, **options):
    trainer = make_trainer([callback] if callback else [], max_steps=steps, max_epochs=-1, **options)
    trainer.fit(module, data or loader(64), ckpt_path=ckpt_path)
    return trainer


def weights(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


# ------------------------------------------------------------------------------------------- effects


def test_a_plasticity_of_one_changes_nothing():
    plain, steered = Net(), Net()
    fit(plain, None)
    fit(steered, EntropyController("predictive", floor=1.0, ceiling=1.0))
    assert_same(weights(plain), weights(steered))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_learning_rate_is_scaled_and_put_back(precision):
    """A constant entropy of 1/2 between .2 and .6 gives w = .4 at once: as with .4 times the rate."""
    controller = EntropyController("module", floor=0.2, ceiling=0.6, smoothing=0.0)
    steered = Net(milestones=[3, 6])
    trainer = fit(steered, controller, precision=precision)
    slower = Net(lambda groups: torch.optim.SGD(groups, lr=0.1 * 0.4, momentum=0.9), [3, 6])
    fit(slower, None, precision=precision)
    for name, value in weights(slower).items():
        torch.testing.assert_close(weights(steered)[name], value)
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == pytest.approx([0.001, 0.001])


def test_only_the_groups_named_are_steered():
    controller = EntropyController(
        "module", floor=0.0, ceiling=1.0, entropy_range=(0.5, 1.0), groups=["body"]
    )
    controller.smoothing = 0.0
    module = Net()
    before = weights(module)
    fit(module, controller)
    after = weights(module)
    assert_same({n: before[n] for n in before if "body" in n}, {n: after[n] for n in after if "body" in n})
    assert not torch.equal(before["head.weight"], after["head.weight"])


def test_tensor_learning_rates_stay_the_same_tensors():
    module = Net(lambda groups: torch.optim.Adam(groups, lr=torch.tensor(0.01), foreach=False))
    trainer = make_trainer([EntropyController("module", floor=0.5, ceiling=0.5)], max_steps=3)
    seen = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            seen.append([(id(g["lr"]), float(g["lr"])) for g in trainer.optimizers[0].param_groups])

    trainer.callbacks.append(Watch())
    trainer.fit(module, loader(64))
    assert len({tuple(step) for step in seen}) == 1
    assert seen[0][0][1] == pytest.approx(0.01)


def test_a_closure_that_is_called_twice_scales_once():
    """As optimizers that look twice do; LBFGS, which reads its rate first, is refused."""

    class Twice(torch.optim.SGD):
        def step(self, closure):
            closure()
            rates.append(self.param_groups[0]["lr"])
            super().step(closure)

    rates = []
    trainer = fit(
        Net(lambda groups: Twice(groups, lr=0.1)), EntropyController("module", floor=0.5, ceiling=0.5)
    )
    assert set(rates) == {0.05}
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.1
    lbfgs = Net(lambda groups: torch.optim.LBFGS([p for g in groups for p in g["params"]]))
    with pytest.raises(MisconfigurationException, match="cannot steer LBFGS"):
        fit(lbfgs, EntropyController("module"))


def test_a_second_fit_starts_anew():
    """Neither the average of another net nor its plasticity is taken along."""
    controller = EntropyController("module", "consolidation", floor=0.0, ceiling=0.5, memory=0.0)
    fit(Net(), controller)
    make = lambda groups: torch.optim.SGD(groups, lr=0.0)  # noqa: E731
    other = Net(make)
    with torch.no_grad():
        other.head.weight.fill_(5.0)
    fit(other, controller, steps=3)
    assert (other.head.weight == 5).all()
    assert [point[0] for point in controller.curve] == [1, 2, 3]


def test_consolidation_pulls_back_to_the_slow_average():
    """One step by hand: SGD, then (1 - w) pull of the way to the start, which the average still is."""
    options = {"floor": 0.0, "ceiling": 0.5, "smoothing": 0.0, "pull": 0.4, "memory": 0.75}
    controller = EntropyController("module", "consolidation", **options)
    make = lambda groups: torch.optim.SGD(groups, lr=0.1)  # noqa: E731
    start, plain, pulled = weights(Net()), Net(make), Net(make)
    fit(plain, None, steps=1)
    fit(pulled, controller, steps=1)
    for name, free in weights(plain).items():
        expected = free + (1 - 0.25) * 0.4 * (start[name] - free)
        torch.testing.assert_close(weights(pulled)[name], expected)
        torch.testing.assert_close(controller.slow.average[name], 0.75 * start[name] + 0.25 * expected)


def test_the_module_is_told():
    module = Net()
    fit(module, EntropyController("module", "module", floor=0.0, smoothing=0.5), steps=3)
    assert module.told == pytest.approx([0.75, 0.625, 0.5625])


# ------------------------------------------------------------------------------------------- signals


def test_predictive_entropy_is_that_of_the_logits():
    module, controller = Net(), EntropyController("predictive", smoothing=0.0)
    p = module(next(iter(loader(64)))[0]).detach().softmax(1).double()
    expected = float(-(p * p.log()).sum(1).mean() / math.log(10))
    fit(module, controller, steps=1)
    assert controller.entropy == pytest.approx(expected, rel=1e-5)
    assert controller.w == pytest.approx(0.1 + 0.9 * expected, rel=1e-5)


def test_predictive_entropy_of_a_submodule_over_an_accumulation_window():
    module, controller = Net(), EntropyController("predictive", logits_from="head")
    images = torch.cat([batch[0] for batch in loader(64)])
    p = module(images).detach().softmax(1).double()
    fit(module, controller, steps=1, accumulate_grad_batches=4)
    assert controller.entropy == pytest.approx(float(-(p * p.log()).sum(1).mean() / math.log(10)), rel=1e-5)


def test_agreement_by_hand():
    """The third step: the way so far is the weights less their average, the way asked for is -gradient."""
    controller = EntropyController("agreement", memory=0.5)
    make = lambda groups: torch.optim.SGD(groups, lr=0.01)  # noqa: E731
    module, records = Net(make), []

    class Watch(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            records.append((weights(pl_module), {n: p.grad.clone() for n, p in pl_module.named_parameters()}))

    trainer = make_trainer([Watch(), controller], max_steps=3)
    trainer.fit(module, loader(64))
    average = records[0][0]
    for now, _ in records[1:]:
        average = {name: (a + now[name]) / 2 for name, a in average.items()}
    now, gradients = records[2]
    way = torch.cat([(now[n] - average[n]).flatten() for n in now]).sign()
    asked = torch.cat([-gradients[n].flatten() for n in now]).sign()
    both = (way != 0) & (asked != 0)
    p = float((way == asked)[both].double().mean())
    assert 0.5 < p < 1
    assert controller.entropy == pytest.approx(-p * math.log2(p) - (1 - p) * math.log2(1 - p), rel=1e-5)


def test_no_news_changes_nothing():
    """An entropy that is not finite, or None, leaves w as it was."""

    class News(Net):
        def on_train_batch_start(self, batch, batch_idx):
            self.plasticity_entropy = (0.5, None, math.nan, math.inf)[batch_idx]

    controller = EntropyController("module", smoothing=0.0)
    fit(News(), controller, steps=4)
    assert [point[0] for point in controller.curve] == [1, 2, 3, 4]
    assert [point[2] for point in controller.curve] == pytest.approx([0.55] * 4)


def test_a_skipped_fp16_step_leaves_the_rate_alone():
    class Overflowing(Net):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (math.inf if batch_idx == 1 else 1.0)

    module = Overflowing(milestones=[2])
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    trainer = make_trainer(
        [EntropyController("module", floor=0.5, ceiling=0.5)], max_epochs=1, plugins=[plugin]
    )
    trainer.fit(module, loader(64))
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01)


# ------------------------------------------------------------------------------------------- the run


@pytest.mark.parametrize("effect", ["learning_rate", "consolidation"])
@pytest.mark.parametrize("signal", ["agreement", "predictive"])
def test_resumed_equals_uninterrupted(tmp_path, signal, effect):
    batches = torch.utils.data.DataLoader(digits(16), 16)  # every batch alike

    class Save(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 5:
                trainer.save_checkpoint(tmp_path / "5.ckpt")

    whole, controller = Net(), EntropyController(signal, effect)
    trainer = make_trainer([controller, Save()], max_steps=9, max_epochs=-1)
    trainer.fit(whole, batches)
    resumed, again = Net(), EntropyController(signal, effect)
    fit(resumed, again, 9, tmp_path / "5.ckpt", batches)
    assert_same(weights(whole), weights(resumed))
    assert again.w == controller.w
    assert again.curve == controller.curve
    assert [point[0] for point in again.curve][-1] == 9


def test_numbers_go_to_loggers_and_monitors_see_the_scheduled_rate(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    callbacks = [EntropyController("predictive"), LearningRateMonitor()]
    trainer = make_trainer(callbacks, max_steps=4, logger=logger, log_every_n_steps=1)
    trainer.fit(Net(), loader(64))
    text = (tmp_path / "metrics.csv").read_text()
    header = text.splitlines()[0].split(",")
    assert {"plasticity/entropy", "plasticity/w"} <= set(header)
    assert 0 < float(trainer.callback_metrics["plasticity/w"]) <= 1
    rate = next(i for i, name in enumerate(header) if "lr-" in name)
    rates = {line.split(",")[rate] for line in text.splitlines()[1:]} - {""}
    assert {float(value) for value in rates} == {0.1}
    figure = trainer.callbacks[0].figures()["plasticity"]
    assert len(figure.axes[0].lines) == 2


def test_manual_optimization_with_two_optimizers():
    class Two(Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.SGD(m.parameters(), lr=0.1) for m in (self.body, self.head)]

    module, controller = Two(), EntropyController("agreement", "consolidation")
    trainer = make_trainer([controller], max_steps=8)
    trainer.fit(module, loader(64))
    assert 0 < controller.entropy <= 1
    assert set(controller.slow.average) == {"body.weight", "body.bias", "head.weight", "head.bias"}
    assert [o.param_groups[0]["lr"] for o in trainer.optimizers] == [0.1, 0.1]


def test_the_curve_stays_short(monkeypatch):
    from lightning_plasticity.callbacks import entropy

    monkeypatch.setattr(entropy, "POINTS", 8)
    controller = EntropyController("module")
    fit(Net(), controller, steps=40)
    steps = [point[0] for point in controller.curve]
    assert 4 <= len(steps) <= 8
    assert len({b - a for a, b in pairwise(steps)}) == 1
    assert steps[-1] == 40


# ------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"signal": "surprise"}, "signal='surprise' must be one of"),
        ({"effect": "prayer"}, "effect='prayer' must be one of"),
        ({"floor": 0.7, "ceiling": 0.5}, "floor=0.7"),
        ({"floor": 0.0, "ceiling": 0.0}, "ceiling=0.0"),
        ({"entropy_range": (0.5, 0.5)}, "entropy_range"),
        ({"smoothing": 1.0}, "smoothing=1.0"),
        ({"memory": -0.1}, "memory=-0.1"),
        ({"effect": "consolidation", "pull": 0.0}, "pull=0.0"),
        ({"logits_from": "head"}, "belongs to signal='predictive'"),
        ({"pull": 0.5}, "belongs to effect='consolidation'"),
        ({"signal": "module", "memory": 0.5}, "belongs to 'agreement' and 'consolidation'"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(MisconfigurationException, match=message):
        EntropyController(**options)


class Silent(Net):
    """Does not call itself."""

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(self.body(batch[0].flatten(1))), batch[1])


def test_what_the_run_lacks_is_said():
    with pytest.raises(MisconfigurationException, match=r"groups=\['tail'\].*\['body', 'head'\]"):
        fit(Net(), EntropyController(groups=["tail"]))
    with pytest.raises(MisconfigurationException, match="logits_from='tail' is no submodule"):
        fit(Net(), EntropyController("predictive", logits_from="tail"))
    with pytest.raises(MisconfigurationException, match="saw no logits"):
        fit(Silent(), EntropyController("predictive"))
    bare = Net()
    del bare.plasticity_entropy
    with pytest.raises(MisconfigurationException, match="plasticity_entropy on Net"):
        fit(bare, EntropyController("module"))
    deaf = Net()
    deaf.set_plasticity = None
    with pytest.raises(MisconfigurationException, match=r"set_plasticity\(w\) on Net"):
        fit(deaf, EntropyController("predictive", "module"))
    sparse = GraNet(0.5, update_every=2)
    with pytest.raises(MisconfigurationException, match="beside sparse training"):
        make_trainer([EntropyController("module", "consolidation"), sparse], max_steps=8).fit(
            Net(), loader(64)
        )
