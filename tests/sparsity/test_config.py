"""SparsityConfig: every setting is checked, and errors name the argument, the value and the way out."""

import dataclasses

import pytest
import torch

from lightning_plasticity.sparsity import scores
from lightning_plasticity.sparsity.config import SparsityConfig
from lightning_plasticity.sparsity.granularity import Groups
from lightning_plasticity.sparsity.schedules import Constant, Cosine, Cubic, Schedule


class Saw(Schedule):
    """A curve of one's own that rises, then falls."""

    def __init__(self, peak=0.5, end=0.2):
        self.peak, self.end = peak, end

    def __call__(self, step, total):
        return self.peak * step / total if step < total else self.end


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity=1.0 must be a number in \[0, 1\) or a schedule"),
        ({"sparsity": -0.1}, r"sparsity=-0.1 must be a number in \[0, 1\)"),
        ({"sparsity": float("nan")}, "sparsity=nan"),
        ({"sparsity": True}, "sparsity=True"),
        ({"sparsity": "0.9"}, "sparsity='0.9'"),
        ({"sparsity": Constant(1.0)}, "sparsity=1.0"),
        ({"sparsity": {"fc": 0.5, "conv": 1.5}}, "sparsity=1.5"),
        ({"sparsity": {}}, "sparsity={} names no layer; give a number or a mapping"),
        ({"regrow_ratio": 1.1}, r"regrow_ratio=1.1 must be a number in \[0, 1\]"),
        ({"regrow_ratio": -0.5}, "regrow_ratio=-0.5"),
        ({"update_every": 0}, "update_every=0 must be a positive number of optimizer steps"),
        ({"update_every": 2.5}, "update_every=2.5"),
        ({"update_every": True}, "update_every=True"),
        ({"drop": "size"}, "drop='size' must be one of 'magnitude', 'gradient', 'sensitivity', 'random'"),
        ({"drop": "gradient"}, "drop='gradient' would drop what has converged; choose 'magnitude'"),
        ({"grow": "luck"}, "grow='luck' must be one of"),
        ({"scope": "local"}, "scope='local' must be one of 'global', 'layer'"),
        ({"distribution": "er"}, "distribution='er' must be one of 'erk', 'uniform'"),
        ({"initial": "ones"}, "initial='ones' must be one of 'random', 'magnitude'"),
        ({"granularity": "channel"}, "granularity='channel' must be 'weight', 'filter' or an N:M string"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SparsityConfig(**options)


def test_numbers_become_schedules_and_names_become_functions():
    config = SparsityConfig(0.5, 1.0, drop="sensitivity", grow="random", granularity="2:4")
    assert config.sparsity_schedules == {"*": Constant(0.5)}
    assert config.regrow_schedule == Constant(1.0)
    assert (config.drop_score, config.grow_score) == (scores.sensitivity, scores.random)
    assert isinstance(config.pattern, Groups)
    named = SparsityConfig({"a": 0.5, "b": Cubic()})
    assert named.sparsity_schedules == {"a": Constant(0.5), "b": Cubic()}
    own = SparsityConfig(drop=torch.add)
    assert own.drop_score is torch.add
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.sparsity = 0.1


def test_a_mapping_keeps_to_the_layers_it_names():
    config = SparsityConfig({"first": 0.5, "second.0": 0.7}, update_every=7)
    layers = {"first.0.weight": 1, "second.0.weight": 2, "second.2.weight": 3}
    assert config.named_layers(layers) == {"first.0.weight": 1, "second.0.weight": 2}
    assert SparsityConfig(0.5).named_layers(layers) == layers
    with pytest.raises(ValueError, match="sparsity: the pattern 'third' matches no parameter"):
        SparsityConfig({"first": 0.5, "third": 0.5}).named_layers(layers)
    assert config.for_layers(["second.0.weight"]) == SparsityConfig({"second.0": 0.7}, update_every=7)
    assert SparsityConfig(0.5).for_layers(["x"]) == SparsityConfig(0.5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SparsityConfig(Saw(1.5, 1.5)), r"leaves \[0, 1\) during the run for '\*'"),
        (SparsityConfig({"fc": Saw()}), "falls during the run for 'fc'; connections cannot be added back"),
        (SparsityConfig(Cosine(0.9, 0.1)), "falls during the run"),
        (SparsityConfig(Cubic(0.9, 0.5)), "falls during the run"),
        (SparsityConfig(Cubic(0.0, 1.0)), r"leaves \[0, 1\)"),
        (
            SparsityConfig(0.3, granularity="2:4"),
            "sparsity ends at 0.3 .* granularity='2:4' needs at least 0.5: raise",
        ),
        (SparsityConfig(Cubic(0.0, 0.7), granularity="1:4"), "needs at least 0.75"),
        (SparsityConfig(0.5, Saw(3.0, 3.0)), r"regrow_ratio=.* leaves \[0, 1\] during the run"),
        (SparsityConfig(Cubic(0.0, 0.5, 90, 0.5)), "before start"),
    ],
)
def test_bad_curves_are_refused_once_the_length_is_known(config, message):
    with pytest.raises(ValueError, match=message):
        config.check_schedules(100)


@pytest.mark.parametrize("total", [1, 3, 100, 10**6, 2**62])
def test_good_curves_pass_whatever_the_length(total):
    for config in (
        SparsityConfig(0.9, Cosine(0.5, 0.005)),
        SparsityConfig(Cubic()),
        SparsityConfig(0.5, granularity="2:4"),
        SparsityConfig(0.9, granularity="2:4"),
        SparsityConfig({"a": 0.0, "b": Cubic(0.2, 0.3)}),
    ):
        config.check_schedules(total)
