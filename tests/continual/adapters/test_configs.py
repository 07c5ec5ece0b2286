"""Which adapter is meant, and how peft learns of ours."""

import copy
import subprocess
import sys

import pytest
import torch
import yaml
from peft import LoraConfig, mapping
from timm.models.convnext import ConvNeXt
from torch import nn

from lightning_plasticity.continual.adapters import (
    AdapterPair,
    SSFConfig,
    Tuner,
    TunerConfig,
    make_config,
    plain_config,
    register,
    register_tuner,
)
from tests.continual.adapters.nets import CASES, bare, settings


def test_registering_again_changes_nothing_and_hides_no_method_of_peft():
    tables = [getattr(mapping, f"PEFT_TYPE_TO_{what}_MAPPING") for what in ("CONFIG", "TUNER", "PREFIX")]
    register()
    before = [dict(table) for table in tables]
    register()
    assert [dict(table) for table in tables] == before
    ours = {"PLASTICITY_SSF", "PLASTICITY_BOTTLENECK", "PLASTICITY_DEEP_PROMPT"}
    assert all(ours < table.keys() for table in tables)
    assert tables[0]["LORA"] is LoraConfig
    prefixes = list(tables[2].values())
    assert all(prefixes.count(tables[2][name]) == 1 for name in ours)


@pytest.mark.parametrize(
    ("method", "prefix", "words"),
    [
        ("LORA", "own_", r"OwnConfig: method='LORA' is LoraConfig's: choose another name"),
        ("PLASTICITY_SSF", "own_", r"method='PLASTICITY_SSF' is SSFConfig's"),
        ("OWN", "ssf_", r"OwnModel: prefix='ssf_' is that of ssf: choose another one"),
        ("OWN", "lora_", r"prefix='lora_' is that of lora"),
    ],
)
def test_a_tuner_of_a_taken_name_or_prefix_is_refused(method, prefix, words):
    register()
    tables = [getattr(mapping, f"PEFT_TYPE_TO_{what}_MAPPING") for what in ("CONFIG", "TUNER", "PREFIX")]
    before = [dict(table) for table in tables]
    config = type("OwnConfig", (TunerConfig,), {"method": method})
    model = type("OwnModel", (Tuner,), {"prefix": prefix})
    with pytest.raises(ValueError, match=words):
        register_tuner(config, model)
    with pytest.raises(ValueError, match="OwnConfig: method=None must be the method's name"):
        register_tuner(type("OwnConfig", (), {}), model)
    with pytest.raises(ValueError, match="method='LORA' is LoraConfig's"):
        register_tuner(type("LoraConfig", (TunerConfig,), {"method": "LORA"}), model)
    assert [dict(table) for table in tables] == before


def test_a_peft_without_the_tables_is_named(monkeypatch):
    monkeypatch.delattr(mapping, "PEFT_TYPE_TO_PREFIX_MAPPING")
    with pytest.raises(RuntimeError, match=r"peft \d.* isn't supported: it has no tables"):
        register()


def test_nothing_imports_peft_before_it_is_needed():
    code = "import sys, lightning_plasticity.continual.adapters as a; print(a.__all__, 'peft' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    classes = ["AdapterPair", "BottleneckConfig", "DeepPromptConfig", "SSFConfig"]
    bases = ["Tuner", "TunerConfig", "TunerLayer"]
    functions = ["make_config", "plain_config", "register", "register_tuner"]
    assert done.stdout.strip() == f"{[*classes, *bases, *functions]} False"


@pytest.mark.parametrize(
    "code",
    [
        "from lightning_plasticity.continual.adapters import SSFConfig",
        "from lightning_plasticity.continual.adapters import make_config; make_config('ssf', None)",
    ],
)
def test_a_missing_peft_names_the_extra(code):
    code = f"import sys; sys.modules['peft'] = None\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "adapters need peft: pip install 'lightning-plasticity[recipes]'" in done.stderr


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ("conv", "SSFConfig"),
        ("vit", "BottleneckConfig"),
        (ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), num_classes=0), "SSFConfig"),
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), "SSFConfig"),
    ],
)
def test_the_default_follows_the_backbone(backbone, expected):
    size = 32 if isinstance(backbone, ConvNeXt) else 16
    backbone = bare(backbone) if isinstance(backbone, str) else backbone
    pair = AdapterPair(backbone)
    assert type(pair.peft_config).__name__ == expected
    assert pair.features(torch.zeros(1, 3, size, size)).ndim == 2


def test_a_config_is_meant_by_itself_its_name_or_its_settings():
    config = SSFConfig(init="noise")
    assert make_config(config, nn.Identity()) is config
    assert make_config("ssf", nn.Identity()) == SSFConfig()
    assert make_config({"method": "SSF", "init": "noise"}, nn.Identity()) == config
    assert make_config({"method": "lora", "r": 3}, nn.Identity()).r == 3


def test_the_given_config_is_left_as_it_was():
    config = SSFConfig()
    pair = AdapterPair(bare("vit"), config)
    assert config.target_modules is None
    assert "norm1" in pair.peft_config.target_modules


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("sff", "method must be one of .*bottleneck.*deep_prompt.*lora.*ssf"),
        ({"init": "noise"}, "method must be one of"),
        ({"method": "ssf", "rank": 3}, "unexpected keyword argument 'rank'"),
        ({"method": "lora", "target_modules": ["qkv"], "bias": "all"}, "bias='all' would train the backbone"),
        (
            {"method": "adalora", "target_modules": ["qkv"], "total_step": 9},
            "AdaLoraConfig moves ranks by calls",
        ),
        ({"method": "prompt_tuning"}, "PromptTuningConfig is for language models only; use 'deep_prompt'"),
        ({"method": "lora", "target_modules": ["q_proj"]}, "q_proj"),
    ],
)
def test_bad_configs(config, words):
    with pytest.raises(ValueError, match=words):
        AdapterPair(bare("vit"), config)


@pytest.mark.parametrize(("kind", "name"), CASES, ids=["-".join(case) for case in CASES])
def test_a_configuration_in_plain_types_is_the_same(kind, name):
    """As it was given, and with its modules filled in by peft; and it goes through YAML."""
    given = make_config(settings(kind, name), bare(kind))
    filled = AdapterPair(bare(kind), copy.deepcopy(given)).peft_config
    for config in (given, filled):
        plain = plain_config(config)
        again = make_config(yaml.safe_load(yaml.safe_dump(plain)), bare(kind))
        assert type(again) is type(config)
        assert plain_config(again) == plain
    assert plain_config(given)["method"] == settings(kind, name)["method"]


def test_settings_that_are_not_plain_are_refused():
    config = SSFConfig()
    config.init = torch.zeros(1).bool  # a function
    with pytest.raises(ValueError, match=r"SSFConfig: init=.* can't be kept in a checkpoint"):
        plain_config(config)
