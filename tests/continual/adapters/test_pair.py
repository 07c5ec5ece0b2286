"""The pair of adapters, and the traps of switching adapters in peft, with controls that show the traps."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_plasticity.continual.adapters import AdapterPair
from tests.continual.adapters.nets import bare, images, settings, small_vit, train

LORA = {"method": "lora", "target_modules": ["qkv"], "lora_dropout": 0.5, "init_lora_weights": False}


def lora_of_peft():
    """What a user writes with peft alone."""
    config = LoraConfig(target_modules=["qkv"], init_lora_weights=False)
    model = get_peft_model(small_vit(), config, adapter_name="slow")
    model.add_adapter("fast", config)
    model.set_adapter("fast")
    return model


def gradients(module):
    return sum(parameter.grad is not None for parameter in module.parameters())


def trainable(pair):
    return [name for name, parameter in pair.named_parameters() if parameter.requires_grad]


def test_no_gradient_is_lost_by_reading_another_learner_before_backward():
    model = lora_of_peft()
    loss = model(images()).sum()
    model.set_adapter("slow")
    model(images())
    loss.backward()
    assert gradients(model) == 0, "peft no longer loses them: the pair could be simpler"
    pair = AdapterPair(small_vit(), LORA)
    loss = pair.features(images()).sum()
    pair.features(images(), "slow"), pair.features(images(), "pretrained")
    loss.backward()
    assert gradients(pair) == len(pair.adapter_parameters()) == 4


def test_nothing_is_unfrozen_by_reading():
    model = lora_of_peft()
    model.set_adapter("fast", inference_mode=True)
    with model.disable_adapter():
        model(images())
    assert sum(p.requires_grad for p in model.parameters()) == 4, "peft no longer un-freezes"
    pair = AdapterPair(small_vit(), LORA)
    wanted = [f"model.{name}" for name in pair._trained]
    assert trainable(pair) == wanted
    for learner in ("slow", "pretrained", "fast"):
        pair.features(images(), learner)
        assert trainable(pair) == wanted
    pair.requires_grad_(False)
    pair.features(images(), "slow"), pair.features(images(), "pretrained")
    assert trainable(pair) == []
    assert [f"model.{name}" for name in pair._trained] == wanted
    assert len(pair.adapter_parameters()) == 4, "what is trained doesn't depend on flags"


def test_everything_is_put_back_when_reading_fails():
    pair = train(AdapterPair(small_vit(), LORA))
    pair.train()
    for learner in ("slow", "pretrained"):
        with pytest.raises(AssertionError, match="doesn't match model"):
            pair.features(torch.zeros(1, 3, 15, 15), learner)
    modes = [module.training for module in pair.modules()]
    assert modes == [module.training for module in pair.train().modules()]
    torch.manual_seed(0)
    features = pair.features(images())
    assert features.requires_grad
    pair.eval()
    assert not torch.equal(pair.features(images()), pair.features(images(), "slow"))


def test_dropout_is_off_in_eval_on_a_backbone_that_was_in_eval():
    pair = AdapterPair(small_vit(), LORA)  # in train mode, as every new module
    assert not torch.equal(pair.features(images()), pair.features(images()))
    pair.eval()
    assert torch.equal(pair.features(images()), pair.features(images()))


def test_training_mode_reaches_the_fast_adapter_alone():
    pair = AdapterPair(small_vit(), LORA).train()
    training = {name for name, module in pair.named_modules() if module.training}
    slow = {name for name, _ in pair.named_modules() if "slow" in name.split(".")}
    dropouts = {
        name for name, module in pair.named_modules() if isinstance(module, nn.Dropout) and module.p > 0
    }
    assert len(slow) >= 6
    assert not training & slow
    assert {name for name in dropouts if name in training} == {
        f"model.base_model.model.blocks.{block}.attn.qkv.lora_dropout.fast" for block in (0, 1)
    }
    assert "model.base_model.model.blocks.0.attn" not in training
    nn.Sequential(pair).train()
    assert {name for name, module in pair.named_modules() if module.training} == training
    assert not any(module.training for module in pair.eval().modules())


@pytest.mark.parametrize("name", ["ssf", "ln_tuning"])
def test_batch_norm_keeps_its_statistics(name):
    pair = AdapterPair(bare("conv"), settings("conv", name)).train()
    norms = [module for module in pair.modules() if isinstance(module, _BatchNorm)]
    before = [norm.running_mean.clone() for norm in norms]
    inference = pair.eval().features(images())
    assert torch.equal(pair.train().features(images()), inference)
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))
    assert len(norms) >= 49


def test_activation_checkpointing_recomputes_the_learner_that_was_meant():
    results = []
    for checkpointing in (False, True):
        net = small_vit()
        net.set_grad_checkpointing(checkpointing)
        pair = AdapterPair(net, {**LORA, "lora_dropout": 0.0}).train()
        with torch.no_grad():
            for tensor in pair._tensors_of("slow").values():
                tensor.mul_(3)
        fast = pair.features(images())
        pair.features(images(), "slow"), pair.features(images(), "pretrained")
        fast.square().sum().backward()
        results.append([parameter.grad for _, parameter in pair.adapter_parameters()])
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(recomputed, plain)


@pytest.mark.slow
# the compiler looks at .grad of the stream that a hook of this call's own has caught
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("config", [{"method": "ssf", "target_modules": ["norm1", "fc1"]}, "bottleneck"])
def test_compiled_learners_are_the_same(config):
    pair = train(AdapterPair(small_vit(depth=1), config))
    pair.hand_over()
    train(pair, steps=1, seed=8)
    compiled = torch.compile(pair.features, backend="eager")
    for learner in ("fast", "slow", "pretrained", "fast"):
        torch.testing.assert_close(compiled(images(), learner), pair.features(images(), learner))


def test_learners_have_gradients_or_none():
    pair = AdapterPair(small_vit(), "ssf")
    assert [pair.features(images(), learner).requires_grad for learner in ("fast", "slow", "pretrained")] == [
        True,
        False,
        False,
    ]
    slow = pair.features(images(), "slow")
    (pair.features(images()) * slow).sum().backward()  # slow features may be saved for backward
    with torch.no_grad():
        assert not pair(images()).requires_grad
    assert torch.equal(pair(images(), "slow"), slow)


def test_the_names_of_a_state_are_a_promise_to_checkpoints():
    pair = AdapterPair(small_vit(depth=1), {"method": "ssf", "target_modules": ["norm1"]})
    assert list(pair.state_dict_of("slow")) == [
        "base_model.model.blocks.0.norm1.ssf_scale",
        "base_model.model.blocks.0.norm1.ssf_shift",
    ]
    assert [name for name, _ in pair.adapter_parameters()] == list(pair.state_dict_of("fast"))


def test_the_global_generator_is_left_alone():
    torch.manual_seed(4)
    before = torch.get_rng_state()
    AdapterPair(small_vit(), LORA)
    assert torch.equal(torch.get_rng_state(), before)


def test_states_that_do_not_fit_are_refused_whole():
    pair = AdapterPair(small_vit(), {"method": "ssf", "target_modules": ["norm1"]})
    before = pair.state_dict_of("slow")
    keys = list(before)
    fitting = {key: tensor + 1 for key, tensor in before.items()}
    with pytest.raises(ValueError, match=f"1 names differ, as '{keys[0]}'"):
        pair.load_state_dict_of("slow", {key: fitting[key] for key in keys[1:]})
    with pytest.raises(ValueError, match=rf"'{keys[-1]}' has shape \(5,\) instead of \(32,\)"):
        pair.load_state_dict_of("slow", {**fitting, keys[-1]: torch.zeros(5)})
    after = pair.state_dict_of("slow")
    assert all(torch.equal(after[key], before[key]) for key in keys)
    with pytest.raises(ValueError, match="adapter='pretrained' must be 'fast' or 'slow'"):
        pair.state_dict_of("pretrained")
    with pytest.raises(ValueError, match="learner='both' must be one of fast, slow, pretrained"):
        pair.features(images(), "both")


def test_backbones_that_cannot_take_a_pair_are_refused():
    pair = AdapterPair(small_vit(), "ssf")
    with pytest.raises(ValueError, match="the backbone has adapters already"):
        AdapterPair(pair.model.get_base_model(), "ssf")
    with pytest.raises(ValueError, match="modules named 'fast' or 'slow'"):
        AdapterPair(nn.ModuleDict({"slow": nn.Linear(2, 2)}), "ssf")


def test_adapters_of_another_backbone_or_folder_are_refused(tmp_path):
    AdapterPair(small_vit(), "ssf").save_pretrained(tmp_path / "saved")
    other = small_vit()
    other.blocks[1].mlp.fc1.weight.data.add_(0.1)
    with pytest.raises(
        ValueError, match=r"are for the backbone 'VisionTransformer' \([0-9a-f]{32}\), not for"
    ):
        AdapterPair.from_pretrained(other, tmp_path / "saved")
    with pytest.raises(ValueError, match=r"has no backbone.json: write it by AdapterPair.save_pretrained"):
        AdapterPair.from_pretrained(small_vit(), tmp_path)


def test_weights_that_do_not_fit_their_configuration_are_refused(tmp_path):
    AdapterPair(small_vit(), "ssf").save_pretrained(tmp_path)
    path = tmp_path / "slow" / "adapter_config.json"
    config = json.loads((tmp_path / "fast" / path.name).read_text())
    config["target_modules"] = "blocks.0.norm1"
    (tmp_path / "fast" / path.name).write_text(json.dumps(config))
    with pytest.raises(ValueError, match="doesn't fit its configuration: see"):
        AdapterPair.from_pretrained(small_vit(), tmp_path)


def test_the_pair_can_be_saved_and_loaded_by_pytorch_with_weights_only(tmp_path):
    pair = train(AdapterPair(small_vit(), "bottleneck"))
    torch.save({"fast": pair.state_dict_of("fast"), "about": pair.about}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again = AdapterPair(small_vit(), "bottleneck").eval()
    again.load_state_dict_of("fast", state["fast"])
    assert torch.equal(again.features(images()), pair.features(images()))
    assert (
        state["about"]
        == again.about
        == {"name": "VisionTransformer", **{k: pair.about[k] for k in ("fingerprint", "num_features")}}
    )
    assert pair.about["num_features"] == 32
