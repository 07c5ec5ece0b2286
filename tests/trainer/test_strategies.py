"""Strategies under which masks would go wrong, or that are not tested, are refused at fit start."""

from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)

from lightning_plasticity.callbacks import SET, GradualPruning, GraNet, RigL, StaticSparsity
from lightning_plasticity.callbacks.support import check_equal_masks, check_strategy, shard_group
from tests.trainer.modules import ConvNet, loader, make_trainer


class Unknown(Strategy):
    """A strategy of the user's own."""

    broadcast = barrier = reduce = all_gather = reduce_boolean_decision = None
    is_global_zero = root_device = model_to_device = None


def start(strategy, callback):
    """Begin a fit under a strategy that is not launched."""
    trainer = make_trainer([callback], max_steps=4, max_epochs=-1)
    module = ConvNet()
    trainer.fit(module, loader())
    trainer._accelerator_connector.strategy = strategy
    callback.on_fit_start(trainer, module)


REFUSED = {
    FSDPStrategy: "FSDP1 flattens parameters",
    DeepSpeedStrategy: "DeepSpeed owns gradients and steps",
    Unknown: "not among the strategies that are tested",
}


@pytest.mark.parametrize("method", [GraNet, GradualPruning, RigL, SET, StaticSparsity])
@pytest.mark.parametrize("strategy", REFUSED)
def test_refused_at_fit_start_with_the_reason(strategy, method):
    with pytest.raises(MisconfigurationException) as caught:
        start(strategy.__new__(strategy), method(include=["conv2"]))  # constructing some needs other packages
    for part in (
        method.__name__,
        f"strategy={strategy.__name__}",
        REFUSED[strategy],
        "Tested: single device, ddp",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("strategy", [SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy])
def test_tested_ones_pass(strategy):
    check_strategy(SimpleNamespace(strategy=strategy.__new__(strategy)), "GraNet")


def test_the_same_under_the_other_name_of_lightning():
    for name, passes in (("DDPStrategy", True), ("FSDPStrategy", False)):
        strategy = type(name, (), {})()
        if passes:
            check_strategy(SimpleNamespace(strategy=strategy), "GraNet")
        else:
            with pytest.raises(MisconfigurationException, match="FSDPStrategy"):
                check_strategy(SimpleNamespace(strategy=strategy), "GraNet")


def test_averaging_models_instead_of_gradients_is_refused():
    """Post-local SGD: gradients differ between processes, so each would grow connections of its own."""
    strategy = DDPStrategy(model_averaging_period=4)
    with pytest.raises(MisconfigurationException, match="model_averaging_period=4"):
        start(strategy, GraNet())


def test_whole_parameters_have_no_group_and_one_process_no_ranks_to_compare():
    callback = RigL(0.5, check_ranks=True, update_every=2)
    trainer = make_trainer([callback], max_steps=4, max_epochs=-1)
    trainer.fit(ConvNet(), loader())
    engines = [engine for _, engine in callback._engines]
    assert shard_group(engines[0].parameters.values()) is None
    assert not torch.distributed.is_initialized()
    check_equal_masks(engines)
    assert engines[0].updates
