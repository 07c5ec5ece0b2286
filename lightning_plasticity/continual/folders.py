"""SAFE in a folder, adapters in peft's format, and the slow learner alone for serving."""

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from lightning_plasticity.continual.adapters import AdapterPair
from lightning_plasticity.continual.backbones import load_backbone
from lightning_plasticity.continual.checkpoints import ADAPTERS
from lightning_plasticity.continual.heads import CosineHead
from lightning_plasticity.continual.learners import SlowFast
from lightning_plasticity.continual.report import Record

if TYPE_CHECKING:
    from lightning_plasticity.continual.saving import SavedModule

_Saved = TypeVar("_Saved", bound="SavedModule")
FILE = "safe.pt"


def save(model: "SavedModule", folder: str | Path) -> None:
    """Writes `fast/` and `slow/` in peft's format, which backbone they need, and `safe.pt` with the rest."""
    model.adapters.save_pretrained(folder)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith(ADAPTERS)}
    record = None if model.record is None else model.record.state()
    given = {name: model.hparams[name] for name in model.hparams if name not in ("backbone", "peft_config")}
    content = {
        "state": state,
        "settings": given,
        "begun": model.begun,
        "ended": model.ended,
        "record": record,
        "class_order": model.class_order,
    }
    torch.save(content, Path(folder) / FILE)


def load(cls: type[_Saved], backbone: str | nn.Module, folder: str | Path) -> _Saved:
    """The model that `save` wrote.

    Raises:
        ValueError: for another backbone, or a folder that holds no such model.
    """
    file = Path(folder) / FILE
    if not file.is_file():
        raise ValueError(f"folder={str(folder)!r} has no {FILE}: write it by SAFE.save_pretrained")
    saved = torch.load(file, weights_only=True, map_location="cpu")
    given = saved["settings"]
    net = backbone
    if isinstance(backbone, str):
        net = load_backbone(backbone, given["weights"], given["image_size"])
    pair = AdapterPair.from_pretrained(net, folder)  # type: ignore[arg-type]
    model = cls(pair, **given)  # type: ignore[call-arg]  # as SAFE is made
    own = model.state_dict()
    model.load_state_dict({name: own[name] for name in own if name.startswith(ADAPTERS)} | saved["state"])
    model.begun, model.ended = saved["begun"], saved["ended"]
    model.class_order = saved.get("class_order")
    model.record = None if saved["record"] is None else Record.of(saved["record"])
    return model


def serving(learners: SlowFast, classes: int) -> nn.Module:
    """The slow learner as plain modules: backbone with the adapter merged, random features, ridge weights.

    With `head="means"`: the backbone, and a cosine head of the classes' mean features.
    """
    if learners.prediction.head == "means":
        means = CosineHead(learners.means.shape[2], classes, float(learners.slow_head.scale))
        means.set_rows(0, learners.means[0, :classes])
        return nn.Sequential(learners.adapters.merged("slow"), means).requires_grad_(False).eval()
    width = learners.prediction.random_features
    expand = nn.Linear(learners.means.shape[2], width, bias=False)
    predict = nn.Linear(width, classes, bias=False)
    with torch.no_grad():
        expand.weight.copy_(learners.slow_ridge.projection.T)
        predict.weight.copy_((learners.slow_head.scale * learners.slow_ridge.weight[:, :classes]).T)
    merged = learners.adapters.merged("slow")
    return nn.Sequential(merged, expand, nn.ReLU(), predict).requires_grad_(False).eval()
