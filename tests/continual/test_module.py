"""SAFE under a Trainer: what changes and what must not, sessions as epochs, baselines, bad input."""

import math

import lightning.pytorch as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch.utils.data import DataLoader, TensorDataset

from lightning_plasticity.continual import SAFE
from lightning_plasticity.continual.sessions import check_trainer
from tests.continual.nets import Watch, conv_net, digits, fitted, safe, tensors, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training"),  # the frozen backbone
    pytest.mark.filterwarnings("ignore:Unsupported layer type"),
]


@pytest.mark.parametrize(
    ("backbone", "peft"),
    [
        ("conv", None),
        ("vit", None),
        ("vit", "deep_prompt"),
        ("vit", {"method": "lora", "target_modules": ["qkv"]}),
    ],
)
def test_what_learns_and_what_never_changes(backbone, peft):
    """After session 1 the slow learner is fixed to the bit; the backbone always; the trained set is one."""
    model = safe(backbone, peft_config=peft)
    frozen = {
        n: t
        for n, t in tensors(model).items()
        if ".adapters." in n and not {"fast", "slow"} & set(n.split("."))
    }
    seen, rows, trained = {}, {}, []

    def keep(trainer, module):
        seen[trainer.current_epoch] = module.adapters.state_dict_of("slow")
        rows[trainer.current_epoch] = module.learners.slow_head.weight.clone()
        trained.append([id(p) for g in trainer.optimizers[0].param_groups for p in g["params"]])
        assert not any(p.requires_grad for n, p in module.named_parameters() if "slow" in n.split("."))

    fitted(model, callbacks=[Watch(on_train_epoch_start=keep)])
    now = tensors(model)
    assert all(torch.equal(now[name], value) for name, value in frozen.items())
    slow = model.adapters.state_dict_of("slow")
    assert all(torch.equal(slow[name], value) for name, value in seen[2].items())
    assert all(torch.equal(slow[name], value) for name, value in seen[3].items())
    assert any(not torch.equal(slow[name], value) for name, value in seen[0].items())
    fast = model.adapters.state_dict_of("fast")
    assert any(not torch.equal(slow[name], value) for name, value in fast.items())
    assert all(ids == trained[0] for ids in trained)
    assert torch.equal(model.learners.slow_head.weight[:4], rows[2][:4])
    assert rows[2][:4].any()
    assert not rows[2][4:].any()
    assert model.record.evaluated == 3


def test_it_learns_and_does_not_forget():
    """The aggregate is far above chance on all sessions; without alignment the fast learner forgets."""
    options = {"epochs_per_session": [6, 3, 3], "batch_size": 32}
    model = safe()
    fitted(model, digits(**options))
    matrix = model.record.matrix()
    assert matrix[2].min() > 0.6
    assert matrix.isnan().sum() == 3  # no session is evaluated before it is learned
    naive = safe(
        losses={"alignment": 0.0, "slow_to_fast": 0.0, "fast_to_slow": 0.0},
        prediction={"random_features": 64, "statistics": "separate"},
        optimization={"later_lr": 0.05},
    )
    fitted(naive, digits(**options))
    aligned, forgot = (m.record.summary("fast")["forgetting"] for m in (model, naive))
    assert forgot > aligned + 0.2


def test_momentum_and_learning_rate_start_anew_with_each_session():
    rates, momenta = [], []

    def look(trainer, module):
        optimizer = trainer.optimizers[0]
        rates.append({g["name"]: g["lr"] for g in optimizer.param_groups})
        momenta.append(len(optimizer.state))

    class AfterModule(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == 0:
                look(trainer, module)

    model = safe(optimization={"lr": 0.1, "later_lr": 0.04, "head_lr": 0.02})
    fitted(model, digits(epochs_per_session=[3, 2, 1]), [AfterModule()])
    half = [(1 + math.cos(math.pi * e / 3)) / 2 for e in range(3)]
    expected = [0.1 * f for f in half] + [0.04, 0.02, 0.04]
    assert [rate["adapter"] for rate in rates] == pytest.approx(expected)
    assert [rate["head"] for rate in rates] == pytest.approx([0.02 * f for f in half] + [0.02, 0.01, 0.02])
    assert [count == 0 for count in momenta] == [True, False, False, True, False, True]


@pytest.mark.parametrize(("rows", "explodes"), [("mean", False), ("zeros", True)])
def test_the_first_gradients_of_a_session(rows, explodes):
    largest = [0.0]

    class Gradients(L.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            largest[0] = max(largest[0], float(module.learners.fast_head.weight.grad.abs().max()))

    model = safe(prediction={"random_features": 16, "new_rows": rows, "statistics": "separate"})
    fitted(model, digits(epochs_per_session=1), [Gradients()], limit_train_batches=1)
    assert (largest[0] > 1e6) == explodes


def test_frozen_features_learned_in_sessions_equal_all_at_once():
    """The strongest test of the sums: three sessions against one, the same backbone and samples."""
    weights = []
    for sessions in ([4, 3, 3], [10]):
        model = safe(adapt="none", prediction={"random_features": 64, "penalties": [1.0]})
        fitted(model, digits(sessions=sessions, epochs_per_session=1))
        weights.append(model.learners.slow_ridge.weight)
        assert model.record.matrix("slow")[-1].nanmean() > 0.7
    torch.testing.assert_close(*weights, rtol=0, atol=1e-5)


def test_nothing_is_tuned_where_nothing_adapts():
    for adapt, changes in (("none", []), ("first", [0])):
        states = []

        def keep(trainer, module, states=states):
            states.append(tensors(module.adapters) | tensors(module.learners.fast_head))

        model = safe(adapt=adapt)
        fitted(model, digits(epochs_per_session=1), [Watch(on_train_epoch_end=keep)])
        fast = [{n: t for n, t in state.items() if "fast" in n.split(".")} for state in states]
        start = model.__class__(conv_net(), 10, prediction={"random_features": 64}).adapters
        before = [{n: t for n, t in tensors(start).items() if "fast" in n.split(".")}, *fast[:-1]]
        changed = [
            i for i in range(3) if any(not torch.equal(fast[i][name], before[i][name]) for name in fast[i])
        ]
        assert changed == changes
        summary = [model.record.summary(name)["final_micro"] for name in ("slow", "aggregate")]
        assert summary[0] == summary[1]


def test_cached_features_are_those_of_the_guide():
    """With and without the numbers of images the same is learned."""
    results = []
    for with_index in (True, False):
        model = safe()
        fitted(model, digits(with_index=with_index, epochs_per_session=1))
        results.append(tensors(model))
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("statistics", ["mapped", "separate", "pooled"])
def test_statistics(statistics):
    model = safe(prediction={"random_features": 32, "statistics": statistics, "views": 1})
    fitted(model, digits(epochs_per_session=1))
    learners = model.learners
    samples = int(learners.slow_ridge.counts.sum())
    per_class = digits()
    per_class.setup()
    total = sum(len(batch[1]) for s in range(3) for batch in per_class.session_loader(s, "train"))
    first = sum(len(batch[1]) for batch in per_class.session_loader(0, "train"))
    assert samples == (2 * total - first if statistics == "pooled" else total)
    assert int(learners.fast_ridge.counts.sum()) == samples


def test_half_precision_is_for_the_networks_alone(monkeypatch):
    """Sums in float32, as the published settings have them, under bf16-mixed: about as good as in float32."""
    monkeypatch.setattr("lightning_plasticity.continual.heads.DOUBLE_UP_TO", 8)
    finals = []
    for precision in ("32-true", "bf16-mixed"):
        model = safe(prediction={"random_features": 64, "views": 1, "penalties": [0.1, 1.0, 10.0]})
        run = fitted(model, digits(epochs_per_session=1), precision=precision)
        finals.append([model.record.summary(name)["final_micro"] for name in ("slow", "fast", "aggregate")])
        (tested, *_), matrix = (
            run.test(model, digits(epochs_per_session=1), verbose=False),
            model.record.matrix(),
        )
        key = next(key for key in tested if key.startswith("test/aggregate"))
        assert tested[key] == pytest.approx(float(matrix[2, 0]), abs=1e-5)
    assert finals[1] == pytest.approx(finals[0], abs=0.03)
    assert finals[0][2] > 0.6


def test_domains_share_their_classes():
    generator = torch.Generator().manual_seed(0)
    domains = []
    for shift in (0.0, 0.3):
        halves = []
        for n in (60, 30):
            y = torch.arange(n) % 3
            x = (
                0.2 * y.view(-1, 1, 1, 1) + shift + 0.1 * torch.rand(n, 3, 16, 16, generator=generator)
            ).clamp(0, 1)
            halves.append((x, y))
        domains.append(tuple(halves))
    from lightning_plasticity.data import ClassIncrementalData

    data = ClassIncrementalData(domains, image_size=16, batch_size=16, epochs_per_session=2)
    model = safe(num_classes=3)
    fitted(model, data)
    assert model.record.evaluated == 2
    assert model(torch.rand(2, 3, 16, 16)).shape == (2, 3)


def test_prediction_before_and_after():
    model, images = safe(), torch.rand(5, 3, 16, 16)
    assert not model(images).any()
    with pytest.raises(RuntimeError, match="first session"):
        model.answers(images)
    run = fitted(model, digits(sessions=[4, 3, 3], epochs_per_session=1))
    logits = model(images)
    assert logits.shape == (5, 10)
    answers = model.answers(images)
    mixed = answers.slow + answers.weight[:, None] * (answers.fast - answers.slow)
    torch.testing.assert_close(logits, mixed)
    tested = run.test(model, digits(sessions=[4, 3, 3], epochs_per_session=1), verbose=False)
    matrix = model.record.matrix()
    for session, numbers in enumerate(tested):
        key = next(key for key in numbers if key.startswith("test/aggregate"))
        assert numbers[key] == pytest.approx(float(matrix[2, session]), abs=1e-5)


def test_what_callbacks_rely_on():
    entropies = []
    model = safe()
    run = fitted(
        model,
        digits(epochs_per_session=1),
        [Watch(on_train_batch_end=lambda trainer, module: entropies.append(module.plasticity_entropy))],
    )
    assert [group["name"] for group in run.optimizers[0].param_groups] == ["adapter", "head", "scale"]
    assert all(0 <= float(value) <= 1 and value.dim() == 0 for value in entropies)
    assert run.callback_metrics["continual/aggregate_accuracy"] > 0.3
    assert set(model.figures()) == {"accuracy", "matrix", "fast_weight"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 3}, "max_epochs=4"),
        ({"reload_dataloaders_every_n_epochs": 0}, "reload_dataloaders_every_n_epochs=1"),
        ({"precision": "bf16-true"}, "precision=bf16-true is not supported: .*use bf16-mixed"),
    ],
)
def test_a_trainer_set_up_wrongly_is_told_how_to_mend_it(options, message):
    given = {"max_epochs": options.pop("epochs", 4), "reload_dataloaders_every_n_epochs": 1} | options
    run = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **given)
    with pytest.raises(MisconfigurationException, match=message):
        run.fit(safe(), digits())


def test_strategies_that_are_not_supported_are_refused():
    run = trainer()
    run.strategy.__class__ = DeepSpeedStrategy  # a kind of DDPStrategy; it can't be made without its package
    with pytest.raises(MisconfigurationException, match="strategy=DeepSpeedStrategy is not supported"):
        check_trainer(run, digits())


def test_nothing_to_evaluate():
    with pytest.raises(MisconfigurationException, match=r"evaluate='val': session 0 .*validation=0\.1"):
        fitted(safe(evaluate="val"), digits(validation=0.0))


def test_a_model_that_has_learned_is_not_begun_again_by_accident(tmp_path):
    """By a new Trainer, the same, or after loading: without the checkpoint its sessions would not count."""
    model = safe()
    run = fitted(model, digits(epochs_per_session=1), limit_train_batches=1)
    run.save_checkpoint(tmp_path / "safe.ckpt")
    before = tensors(model)
    loaded = SAFE.load_from_checkpoint(tmp_path / "safe.ckpt", backbone=conv_net(), weights_only=True)
    for learner, again in ((model, trainer(3)), (model, run), (loaded, trainer(3))):
        with pytest.raises(MisconfigurationException, match=r"has begun 3 sessions .* ckpt_path"):
            again.fit(learner, digits(epochs_per_session=1))
    assert all(torch.equal(value, before[name]) for name, value in tensors(model).items())


def test_a_run_goes_on_with_its_own_sessions_alone(tmp_path):
    save = Watch(on_train_epoch_start=lambda trainer, _: trainer.save_checkpoint(tmp_path / "begun.ckpt"))
    fitted(safe(), digits(epochs_per_session=1), [save], limit_train_batches=1)
    for options, name in (({"seed": 7}, "class_order"), ({"sessions": [4, 4, 2]}, "session_classes")):
        with pytest.raises(
            MisconfigurationException,
            match=f"{name}=.*(the checkpoint's run had|learned the classes in the order)",
        ):
            fitted(safe(), digits(epochs_per_session=1, **options), ckpt_path=tmp_path / "begun.ckpt")


def test_data_without_sessions_or_with_too_many_classes():
    loader = DataLoader(TensorDataset(torch.rand(8, 3, 16, 16), torch.zeros(8, dtype=torch.int64)))
    with pytest.raises(MisconfigurationException, match="ClassIncrementalData"):
        trainer().fit(safe(), loader)
    with pytest.raises(MisconfigurationException, match="num_classes=9: the sessions hold 10"):
        trainer().fit(safe(num_classes=9), digits())


def test_labels_of_a_later_session_and_features_that_are_not_finite():
    class Confused(SAFE):
        def training_step(self, batch, batch_idx):
            return super().training_step([batch[0], batch[1] + 4, *batch[2:]], batch_idx)

    confused = Confused(conv_net(), 10, prediction={"random_features": 8})
    with pytest.raises(ValueError, match=r"knows the classes 0\.\.3, a batch has the label"):
        fitted(confused)
    net = conv_net()
    net[0].weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        fitted(SAFE(net, 10, prediction={"random_features": 8}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapt": "some"}, "adapt='some'"),
        ({"evaluate": "train"}, "evaluate='train'"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"losses": {"align": 1.0}}, r"no \['align'\]"),
        ({"losses": {"alignment": -1.0}}, "alignment=-1.0"),
        ({"optimization": {"lr": 0.0}}, "lr=0.0"),
        ({"optimization": {"momentum": 1.0}}, "momentum=1.0"),
        ({"optimization": {"schedule_epochs": 0}}, "schedule_epochs=0"),
        ({"prediction": {"statistics": "fresh"}}, "statistics='fresh'"),
        ({"prediction": {"gamma": -1.0}}, "gamma=-1.0"),
        ({"prediction": {"penalties": []}}, "penalties"),
        ({"prediction": {"views": -1}}, "views=-1"),
        ({"peft_config": "nothing"}, "peft_config='nothing'"),
        ({"peft_config": {"method": "lora", "target_modules": ["nowhere"]}}, "nowhere"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        safe(**options)


def test_a_backbone_must_be_known_and_say_its_size():
    with pytest.raises(ValueError, match="unknown to timm"):
        SAFE("vit_imaginary")
    with pytest.raises(ValueError, match="ambiguous"):
        SAFE("vit_base_patch16_224")
    net = conv_net()
    del net.num_features
    with pytest.raises(ValueError, match="num_features"):
        SAFE(net)


def test_a_checkpoint_callback_sees_the_end_of_the_session(tmp_path):
    keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, every_n_epochs=1)
    fitted(safe(), callbacks=[keep], enable_checkpointing=True)
    ended = [torch.load(tmp_path / f"epoch={e}.ckpt", weights_only=True)["safe"]["ended"] for e in range(4)]
    assert ended == [0, 1, 2, 3]
