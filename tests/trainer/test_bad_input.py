"""Bad input: an error at construction or fit start that names the argument, the value and the way out."""

from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, Strategy
from torch import nn

from lightning_plasticity.callbacks.presets import SET, GradualPruning, GraNet, RigL, StaticSparsity
from lightning_plasticity.callbacks.pruning_plasticity import PruningPlasticity
from lightning_plasticity.callbacks.sparse_training import SparseTraining
from lightning_plasticity.callbacks.support import check_strategy
from lightning_plasticity.sparsity.schedules import Cubic
from tests.trainer.modules import ConvNet, ManualNet, ScoredNet, loader, make_trainer, sgd

PRESETS = [GraNet, GradualPruning, RigL, SET, StaticSparsity]


class Untouched(ConvNet):
    """Fails if training begins."""

    def training_step(self, batch, batch_idx):
        raise AssertionError("the error comes too late: training has begun")


def refuses(callbacks, message, module=None, kind=ValueError, **options):
    """The fit fails before its first step."""
    trainer = make_trainer(callbacks, **({"max_steps": 20} | options))
    with pytest.raises(kind, match=message):
        trainer.fit(module or Untouched(), loader())
    assert trainer.global_step == 0


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("sparsity", [1.0, 1, -0.1, 1.5, float("nan"), "high", {"conv1": 1.0}])
def test_sparsity_out_of_range(preset, sparsity):
    value = sparsity["conv1"] if isinstance(sparsity, dict) else sparsity
    with pytest.raises(ValueError, match=rf"sparsity={value!r} must be a number in \[0, 1\)"):
        preset(sparsity)


@pytest.mark.parametrize("preset", [GraNet, GradualPruning])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"prune_until": 1.5},
            "prune_until=1.5 is a fraction of the run and must lie between 0.0 and 1.0.*as an int",
        ),
        ({"prune_from": -0.1}, "prune_from=-0.1 is a fraction"),
        ({"prune_from": -3}, "prune_from=-3 is a negative optimizer step"),
        ({"prune_until": 100.0}, "prune_until=100.0 is a fraction .* write optimizer steps as an int"),
        ({"prune_until": "half"}, "prune_until='half' must be a float"),
        ({"prune_from": 0.6, "prune_until": 0.4}, "prune_until=0.4 comes before prune_from=0.6"),
        ({"prune_from": 20, "prune_until": 10}, "prune_until=10 comes before prune_from=20"),
        ({"sparsity": 0.5, "initial_sparsity": 0.6}, "initial_sparsity=0.6 is above sparsity=0.5"),
        ({"initial_sparsity": 1.0}, "initial_sparsity=1.0 must be a number"),
        ({"sparsity": Cubic()}, "sparsity must be the final sparsity, a number; .* use SparseTraining"),
    ],
)
def test_times_and_ends_that_cannot_be(preset, options, message):
    with pytest.raises(ValueError, match=message):
        preset(**options)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RigL(update_until=1.1), "1.1.* is a fraction of the run"),
        (lambda: RigL(regrow_ratio=1.5), r"regrow_ratio=1.5 must be a number in \[0, 1\]"),
        (lambda: GraNet(regrow_ratio=-0.1), "regrow_ratio=-0.1"),
        (lambda: SET(update_every=0), "update_every=0 must be a positive number of optimizer steps"),
        (lambda: GraNet(granularity="2:1"), "granularity='2:1' must be 'weight', 'filter' or an N:M string"),
        (lambda: GraNet(distribution="even"), "distribution='even' must be one of 'erk', 'uniform'"),
        (lambda: SparseTraining(drop="gradient"), "drop='gradient' would drop what has converged"),
        (lambda: SparseTraining(grow="no.such.path"), "grow='no.such.path'"),
        (lambda: SparseTraining(total_steps=0), "total_steps=0 must be a positive number of optimizer steps"),
    ],
)
def test_other_settings_at_construction(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="density"):
        GraNet(density=0.1)


@pytest.mark.parametrize("preset", PRESETS)
def test_patterns_that_match_nothing(preset):
    refuses(
        [preset(0.5, exclude=["classifier"])],
        "exclude: the pattern 'classifier' matches no parameter. Names look",
    )
    refuses([preset(0.5, include=["conv1", "fc"])], "include: the pattern 'fc' matches no parameter")
    refuses([preset({"conv1": 0.5, "fc": 0.5})], "sparsity: the pattern 'fc' matches no parameter")


def test_two_sparsities_for_one_layer():
    refuses([GraNet({"conv1": 0.5, "conv*": 0.9})], "several patterns match one layer, make them disjoint")


def test_a_model_with_nothing_to_mask():
    module = Untouched()
    for part in (module.conv1, module.conv2, module.conv3, module.head):
        part.weight.requires_grad_(False)
    refuses([GraNet()], r"nothing to mask with include=\[\].*Name others with include=\['pattern'\]", module)
    refuses([GraNet(include=["conv1"])], r"names frozen parameters.*\['conv1.weight'\].*Unfreeze", module)


def test_groups_that_do_not_divide():
    refuses(
        [GraNet(0.5, granularity="2:4")],
        r"granularity='2:4' does not fit: 'conv1.weight' .* has 1 inputs.*exclude",
    )
    refuses(
        [GraNet(0.3, granularity="2:4", exclude=["conv1"])],
        "sparsity ends at 0.3 .* granularity='2:4' needs at least 0.5: raise sparsity",
    )


def test_times_in_different_units_that_cross_in_this_run():
    refuses([GraNet(prune_from=15, prune_until=0.5)], "comes before")


def test_two_callbacks_that_claim_one_parameter():
    refuses(
        [GraNet(include=["conv*"]), RigL(include=["conv2", "head"])],
        r"RigL and GraNet both mask \['conv2.weight'\]: give each its own layers with include=",
        kind=MisconfigurationException,
    )
    refuses([GraNet(), GraNet(exclude=["head"])], "both mask.*conv1.weight", kind=MisconfigurationException)


def test_two_equal_callbacks_are_refused_by_the_trainer_itself():
    with pytest.raises(RuntimeError, match="Found more than one stateful callback of type `GraNet`"):
        make_trainer([GraNet(), GraNet()])


def test_an_optimizer_that_never_received_the_parameters():
    def some(module):
        return sgd([*module.conv1.parameters(), *module.conv2.parameters()])

    broken, module = Untouched(), ConvNet()
    broken.configure_optimizers = lambda: some(broken)
    module.configure_optimizers = lambda: some(module)

    refuses(
        [GraNet()],
        r"no optimizer received these masked parameters: \['conv3.weight', 'head.weight'\].*"
        r"configure_optimizers, or leave them dense with .*exclude=\['conv3.weight'\]",
        broken,
        MisconfigurationException,
    )
    callback = GraNet(exclude=["conv3", "head"], update_every=2)
    make_trainer([callback], max_steps=4).fit(module, loader())
    assert callback.density == round(324 * 0.1) / 324


def test_a_run_without_a_known_end():
    options = {"max_steps": -1, "max_epochs": -1}
    refuses(
        [GraNet()],
        r"has no known end.*max_steps.*max_epochs.*total_steps.*steps \(int\)",
        kind=MisconfigurationException,
        **options,
    )


def test_a_run_that_ends_before_its_sparsity_is_said():
    trainer = make_trainer([GraNet(update_every=2, prune_until=50)], max_steps=4)
    with pytest.warns(
        UserWarning, match="the run ends after 4 optimizer steps, before its sparsity is reached"
    ):
        trainer.fit(ConvNet(), loader())


class Alien(Strategy):
    """A strategy that nobody here knows, on the CPU."""

    is_global_zero, root_device = True, torch.device("cpu")

    def model_to_device(self):
        pass

    def reduce(self, tensor, *args, **kwargs):
        return tensor

    def all_gather(self, tensor, *args, **kwargs):
        return tensor

    def barrier(self, name=None):
        pass

    def broadcast(self, obj, src=0):
        return obj


def test_strategies_that_are_not_tested_are_refused_with_a_reason():
    refuses(
        [GraNet()],
        "GraNet does not work with strategy=Alien: it is not among the strategies that are tested",
        kind=MisconfigurationException,
        strategy=Alien(accelerator=CPUAccelerator()),
        accelerator="auto",
    )
    for kind, reason in (
        (FSDPStrategy, "FSDP1 flattens parameters.*FSDP2"),
        (DeepSpeedStrategy, "DeepSpeed owns"),
    ):
        trainer = SimpleNamespace(strategy=object.__new__(kind))
        with pytest.raises(MisconfigurationException, match=f"strategy={kind.__name__}: {reason}"):
            check_strategy(trainer, "GraNet")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rates": ()}, "rates=.* is empty: give the shares of connections to cut"),
        ({"rates": (0.5, 1.0)}, r"rates=1.0 must be a number in \[0, 1\)"),
        ({"rates": (-0.2,)}, "rates=-0.2"),
        ({"epochs": (), "every_n_epochs": None}, "give either epochs or every_n_epochs"),
        ({"every_n_epochs": 2}, "give either epochs or every_n_epochs"),
        ({"epochs": (), "every_n_epochs": 0}, "every_n_epochs=0 must be at least 1"),
        ({"continue_epochs": 0}, "continue_epochs=0 must be at least 1"),
        ({"epochs": (3, -1)}, r"epochs=\[3, -1\] must be ints, counted from 0"),
        ({"epochs": (0.5,)}, r"epochs=\[0.5\] must be ints"),
        ({"scope": "network"}, "scope='network' must be one of"),
        ({"granularity": "channel"}, "granularity='channel' must be"),
    ],
)
def test_pruning_plasticity_at_construction(options, message):
    with pytest.raises(ValueError, match=message):
        PruningPlasticity(**({"epochs": (0,)} | options))


def test_pruning_plasticity_needs_validation_and_its_metric():
    trainer = make_trainer([PruningPlasticity(epochs=[0], continue_epochs=1)], max_epochs=1)
    with pytest.raises(MisconfigurationException, match="PruningPlasticity needs validation data"):
        trainer.fit(Untouched(), loader())


class UntouchedScored(ScoredNet, Untouched):
    """Logs its accuracy, and fails if training begins."""

    training_step = Untouched.training_step


class Silent(ScoredNet):
    """Logs nothing in the sanity check."""

    def validation_step(self, batch, batch_idx):
        if not self.trainer.sanity_checking:
            super().validation_step(batch, batch_idx)


MISSING = r"monitor='val/top1' is not logged.*there are \['val/accuracy'\]"


def test_a_metric_that_is_not_logged_is_missed_before_training():
    plasticity = PruningPlasticity(epochs=[5], continue_epochs=1, monitor="val/top1")
    trainer = make_trainer([plasticity], max_epochs=6)
    with pytest.raises(MisconfigurationException, match=MISSING):
        trainer.fit(UntouchedScored(), loader(), loader(32, 32, 64))
    assert trainer.global_step == 0


@pytest.mark.parametrize(
    ("module", "options"), [(ScoredNet, {"num_sanity_val_steps": 0}), (Silent, {"num_sanity_val_steps": 2})]
)
def test_without_a_sanity_check_it_is_missed_at_the_first_validation(module, options):
    plasticity = PruningPlasticity(epochs=[5], continue_epochs=1, monitor="val/top1")
    trainer = make_trainer([plasticity], max_epochs=6, **options)
    with pytest.raises(MisconfigurationException, match=MISSING):
        trainer.fit(module(), loader(), loader(32, 32, 64))
    assert trainer.current_epoch == 0


def test_without_any_validation_it_is_missed_at_the_first_branch():
    plasticity = PruningPlasticity(epochs=[0], continue_epochs=1, monitor="val/top1")
    trainer = make_trainer([plasticity], max_epochs=3, num_sanity_val_steps=0, check_val_every_n_epoch=3)
    with pytest.raises(MisconfigurationException, match=MISSING):
        trainer.fit(ScoredNet(), loader(), loader(32, 32, 64))


@pytest.mark.parametrize(
    ("options", "limits", "message"),
    [
        ({"epochs": [0, 2, 9]}, {"max_epochs": 2}, r"at epochs=\[2, 9\]: the run has 2 epochs"),
        ({"epochs": [1, 2]}, {"max_epochs": 9, "max_steps": 5}, r"at epochs=\[2\]: the run has 2 epochs"),
        (
            {"epochs": [1]},
            {"max_epochs": -1, "max_steps": 2, "accumulate_grad_batches": 2},
            r"at epochs=\[1\]: the run has 1 epochs",
        ),
        ({"every_n_epochs": 3}, {"max_epochs": 2}, "every_n_epochs=3 is longer than the run, which has 2"),
    ],
)
def test_branches_beyond_the_run_are_said_when_it_starts(options, limits, message):
    trainer = make_trainer([PruningPlasticity(continue_epochs=1, **options)], **limits)
    with (
        pytest.warns(UserWarning, match=message),
        pytest.raises(AssertionError, match="training has begun"),
    ):
        trainer.fit(UntouchedScored(), loader(), loader(32, 32, 64))


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_patterns_have_no_say_where_a_sparse_callback_has_chosen(argument):
    plasticity = PruningPlasticity(epochs=[0], continue_epochs=1, **{argument: ["conv1"]})
    trainer = make_trainer([plasticity, RigL(0.5)], max_epochs=1)
    with pytest.raises(
        MisconfigurationException, match=rf"{argument}=\['conv1'\] has no say.*RigL masks.*give it to RigL"
    ):
        trainer.fit(UntouchedScored(), loader(), loader(32, 32, 64))


def test_filters_are_not_cut_out_of_a_run_that_masks_weights():
    plasticity = PruningPlasticity(epochs=[0], continue_epochs=1, granularity="filter")
    trainer = make_trainer([plasticity, RigL(0.5)], max_epochs=1)
    with pytest.raises(
        MisconfigurationException,
        match=r"granularity='filter' cuts whole.*RigL masks by 'weight'",
    ):
        trainer.fit(ScoredNet(), loader(), loader(32, 32, 64))
    assert trainer.global_step == 0
    trainer = make_trainer(
        [
            PruningPlasticity(epochs=[0], continue_epochs=1, granularity="filter"),
            RigL(0.5, granularity="filter"),
        ],
        max_epochs=1,
    )
    trainer.fit(ScoredNet(), loader(), loader(32, 32, 64))


def test_a_raw_optimizer_step_that_passes_lightning_by_is_said():
    class Raw(ManualNet):
        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers().optimizer
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
            optimizer.step()

    callback = GraNet(0.5, update_every=2, total_steps=8)
    with pytest.raises(RuntimeError, match=r"step 2 ends in an update, but before_step\(\) was not called"):
        make_trainer([callback], max_epochs=2).fit(Raw(), loader())


def test_hooks_are_gone_after_a_failure():
    class Fails(ConvNet):
        def training_step(self, batch, batch_idx):
            if batch_idx == 1:
                raise ArithmeticError("broken")
            return super().training_step(batch, batch_idx)

    module, callback = Fails(), GraNet(update_every=2)
    trainer = make_trainer([callback], max_steps=8)
    with pytest.raises(ArithmeticError):
        trainer.fit(module, loader())
    optimizer = trainer.optimizers[0]
    assert not optimizer._optimizer_step_post_hooks
    assert not optimizer._optimizer_step_pre_hooks
    step = callback._engines[0][1].step
    torch.optim.Optimizer.zero_grad(optimizer)
    optimizer.step()
    assert callback._engines[0][1].step == step
