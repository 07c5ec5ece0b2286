"""Every tuner, ours and peft's, on a convolutional network and a transformer, through the same tests."""

import copy
import warnings

import pytest
import torch
from peft import PeftModel

from lightning_plasticity.continual.adapters import AdapterPair
from tests.continual.adapters.nets import CASES, NOT_IDENTITY, bare, images, settings, train

pytestmark = pytest.mark.parametrize(("kind", "name"), CASES, ids=["-".join(case) for case in CASES])


def make(kind, name):
    return AdapterPair(bare(kind), settings(kind, name), seed=1).eval()


def of_backbone(pair):
    """Every tensor that belongs to neither adapter."""
    adapters = {"fast", "slow"}
    return {
        key: tensor.clone() for key, tensor in pair.state_dict().items() if not adapters & set(key.split("."))
    }


@torch.no_grad()
def test_features_are_unchanged_at_the_start_unless_the_method_says_otherwise(kind, name):
    pair, expected = make(kind, name), bare(kind)(images())
    torch.testing.assert_close(pair.features(images(), "slow"), pair.features(images()), rtol=0, atol=0)
    distance = (pair.features(images()) - expected).abs().max().item()
    assert distance > 1e-3 if name in NOT_IDENTITY else distance < 1e-5


def test_training_changes_the_fast_learner_and_nothing_else(kind, name):
    pair = make(kind, name)
    slow, state = pair.features(images(), "slow"), pair.state_dict_of("slow")
    backbone, fast = of_backbone(pair), pair.features(images()).detach()
    train(pair)
    assert (pair.features(images()) - fast).abs().max() > 1e-3
    assert torch.equal(pair.features(images(), "slow"), slow)
    assert torch.equal(pair.features(images(), "pretrained"), bare(kind)(images()).detach())
    assert all(torch.equal(tensor, state[key]) for key, tensor in pair.state_dict_of("slow").items())
    after = of_backbone(pair)
    assert len(backbone) > 20
    assert all(torch.equal(tensor, backbone[key]) for key, tensor in after.items())


def test_hand_over_makes_slow_equal_to_fast_and_is_a_copy(kind, name):
    pair = train(make(kind, name))
    pair.hand_over()
    handed = pair.features(images(), "slow")
    assert torch.equal(handed, pair.features(images()).detach())
    train(pair, steps=1, seed=5)
    assert torch.equal(pair.features(images(), "slow"), handed)
    assert not torch.equal(pair.features(images()), handed)


def test_merged_equals_unmerged(kind, name):
    pair = train(make(kind, name))
    pair.hand_over()
    train(pair, steps=2, seed=9)
    for adapter in ("slow", "fast"):
        net, expected = pair.merged(adapter), pair.features(images(), adapter).detach()
        torch.testing.assert_close(net(images()), expected, rtol=1e-4, atol=1e-4)
        assert not any("peft" in type(module).__module__ for module in net.modules())
        assert not any(type(module).__name__.endswith("Layer") for module in net.modules())
        assert not any(parameter.requires_grad for parameter in net.parameters())
    # the pair itself goes on as before
    assert torch.equal(pair.features(images(), "pretrained"), bare(kind)(images()).detach())


def test_saved_and_loaded_as_peft_has_it(kind, name, tmp_path):
    pair = train(make(kind, name))
    pair.hand_over()
    train(pair, steps=1, seed=9)
    pair.save_pretrained(tmp_path)
    again = AdapterPair.from_pretrained(bare(kind), tmp_path).eval()
    for learner in ("fast", "slow", "pretrained"):
        assert torch.equal(again.features(images(), learner), pair.features(images(), learner))
    assert [key for key, _ in again.adapter_parameters()] == [key for key, _ in pair.adapter_parameters()]
    with warnings.catch_warnings():
        # of peft's own norm tuning, for norms that are subclasses of torch's; any other is an error here
        warnings.filterwarnings("ignore", message="Unsupported layer type")
        alone = PeftModel.from_pretrained(bare(kind), str(tmp_path / "slow"), adapter_name="other").eval()
    torch.testing.assert_close(alone(images()), pair.features(images(), "slow"), rtol=1e-5, atol=1e-5)


def test_states_go_from_one_pair_to_another(kind, name):
    pair, other = train(make(kind, name)), make(kind, name)
    parameters = [parameter for _, parameter in other.adapter_parameters()]
    for adapter in ("fast", "slow"):
        other.load_state_dict_of(adapter, pair.state_dict_of(adapter))
        assert torch.equal(other.features(images(), adapter), pair.features(images(), adapter))
    same = zip(parameters, other.adapter_parameters(), strict=True)
    assert all(before is after for before, (_, after) in same), "optimizers hold the parameters"
    assert pair.state_dict_of("fast").keys() == pair.state_dict_of("slow").keys()


def test_learners_read_at_will_between_forward_and_backward(kind, name):
    alone, mixed = make(kind, name), make(kind, name)
    weight = torch.randn(6, alone.about["num_features"], generator=torch.Generator().manual_seed(1))
    (alone.features(images()) * weight).sum().backward()
    fast = mixed.features(images())
    mixed.features(images(1), "slow"), mixed.features(images(1), "pretrained")
    (fast * weight).sum().backward()
    for (key, first), (_, second) in zip(alone.adapter_parameters(), mixed.adapter_parameters(), strict=True):
        assert torch.equal(first.grad, second.grad), key
    assert any(parameter.grad.abs().sum() > 0 for _, parameter in mixed.adapter_parameters())


def test_two_seeds_differ_only_where_the_start_is_random(kind, name):
    first, same, other = (
        AdapterPair(bare(kind), settings(kind, name), seed=seed).state_dict_of("fast") for seed in (1, 1, 2)
    )
    assert all(torch.equal(tensor, same[key]) for key, tensor in first.items())
    random = name in {"bottleneck", "deep_prompt", "lora", "lora_and_norm", "shared"}
    assert any(not torch.equal(tensor, other[key]) for key, tensor in first.items()) == random


def test_a_copy_of_the_pair_is_independent(kind, name):
    pair = make(kind, name)
    twin = copy.deepcopy(pair)
    train(twin)
    assert torch.equal(pair.features(images()), make(kind, name).features(images()))
    assert not torch.equal(pair.features(images()), twin.features(images()))
