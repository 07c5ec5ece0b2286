"""Images as a pre-trained network wants them: three channels, resized, cut out, normalised, and augmented."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lightning_plasticity.data.loading import crop_and_flip

Augmentation = Literal["none", "shift", "resized_crop"]
DRAWS = 5  # random numbers per image and epoch


@dataclass(frozen=True)
class Preparation:
    """How images are prepared; the defaults are those of EfficientNet-lite0 and of the ViTs of augreg.

    Args:
        mean: of each channel, full brightness = 1; one number stands for all channels.
        std: likewise.
        interpolation: of resizing, always antialiased.
        crop_pct: without augmentation, the shorter side is resized to ``image_size / crop_pct`` and the
            centre cut out; 1 loses nothing of a square image.
        augment: of training images: ``"none"``; ``"shift"``: a cut out of ``padding`` pixels' zero padding;
            ``"resized_crop"``: a cut of random size and shape, as pre-trained networks are mostly trained
            with.
        padding: of ``"shift"``, in pixels of the original image.
        scale: of ``"resized_crop"``, smallest and largest share of the image's area.
        flip: mirror training images left to right at random, with any ``augment`` but ``"none"``.

    Raises:
        ValueError: for a setting out of range.
    """

    mean: float | tuple[float, ...] = 0.5
    std: float | tuple[float, ...] = 0.5
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    crop_pct: float = 1.0
    augment: Augmentation = "none"
    padding: int = 2
    scale: tuple[float, float] = (0.05, 1.0)
    flip: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        checks = {
            "interpolation": (self.interpolation in ("bilinear", "bicubic"), "'bilinear' or 'bicubic'"),
            "augment": (self.augment in get_args(Augmentation), f"one of {get_args(Augmentation)}"),
            "crop_pct": (0 < self.crop_pct <= 1, "above 0 and at most 1"),
            "padding": (self.padding >= 1, "1 or more"),
            "scale": (0 < self.scale[0] <= self.scale[1] <= 1, "two ascending shares of 0 to 1"),
            "std": (bool((torch.tensor(self.std) > 0).all()), "above 0"),
        }
        for name, (fine, wanted) in checks.items():
            if not fine:
                raise ValueError(f"Preparation: {name}={getattr(self, name)!r} must be {wanted}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, float | int) and len(values) not in (1, 3):
                raise ValueError(f"Preparation: {name}={values!r} must be one number or three")


def colours(images: Tensor) -> Tensor:
    """Three channels: grey ones are repeated, a fourth (transparency) is dropped.

    Args:
        images: ``[..., C, H, W]`` with C 1, 3 or 4.
    """
    shape = list(images.shape)
    shape[-3] = 3
    return images.expand(shape) if images.shape[-3] == 1 else images[..., :3, :, :]


def normalise(images: Tensor, preparation: Preparation) -> Tensor:
    """``(x - mean) / std`` of each channel."""
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (preparation.mean, preparation.std))
    return (images - mean) / std


def resize_and_crop(images: Tensor, size: int, preparation: Preparation) -> Tensor:
    """Resize the shorter side and cut out the centre, to the pixel as torchvision does.

    Args:
        images: float ``[B, C, H, W]``.
        size: side of the result in pixels.
        preparation: gives ``crop_pct`` and the interpolation.

    Returns:
        ``[B, C, size, size]``.
    """
    height, width = images.shape[-2:]
    shorter = round(size / preparation.crop_pct)
    target = tuple(max(side * shorter // min(height, width), size) for side in (height, width))
    resized = _resize(images, target, preparation)
    top, left = (round((side - size) / 2) for side in resized.shape[-2:])
    return resized[..., top : top + size, left : left + size]


def _resize(images: Tensor, size: tuple[int, ...], preparation: Preparation) -> Tensor:
    if images.shape[-2:] == size:
        return images
    resized = interpolate(images, size=size, mode=preparation.interpolation, antialias=True)
    return resized.clamp(0, 1)  # bicubic overshoots


def random_cut(
    height: int, width: int, draw: Tensor, scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    """A cut of random size, shape and place.

    Unlike torchvision, which draws anew until a cut fits into the image, a side too long is shortened: one
    draw per image keeps an epoch repeatable from its seed alone.

    Args:
        height: of the image, pixels.
        width: likewise.
        draw: four numbers in [0, 1): area, shape, top and left.
        scale: smallest and largest share of the image's area; the shape is 3/4 to 4/3.

    Returns:
        Top, left, height and width.

    Example:
        >>> random_cut(32, 32, torch.tensor([0.0, 0.5, 0.5, 0.0]), (0.25, 1.0))
        (8, 0, 16, 16)
    """
    area_, shape_, top_, left_ = draw.tolist()
    area = height * width * (scale[0] + area_ * (scale[1] - scale[0]))
    shape = math.exp(math.log(3 / 4) + shape_ * (math.log(4 / 3) - math.log(3 / 4)))
    cut_width = min(max(round(math.sqrt(area * shape)), 1), width)
    cut_height = min(max(round(math.sqrt(area / shape)), 1), height)
    top, left = int(top_ * (height - cut_height + 1)), int(left_ * (width - cut_width + 1))
    return top, left, cut_height, cut_width


def augmented(images: Tensor, draws: Tensor, size: int, preparation: Preparation) -> Tensor:
    """Cut, resize and mirror at random.

    Args:
        images: float ``[B, C, H, W]``.
        draws: float ``[B, 5]`` in [0, 1): four for the cut, one for the mirror.
        size: side of the result in pixels.
        preparation: says how.

    Returns:
        ``[B, C, size, size]``.
    """
    flips = (draws[:, 4] < 0.5) & preparation.flip
    if preparation.augment == "shift":
        offsets = (draws[:, :2] * (2 * preparation.padding + 1)).long()
        return resize_and_crop(crop_and_flip(images, offsets, flips, preparation.padding), size, preparation)
    cuts = []
    for image, draw in zip(images, draws, strict=True):
        top, left, height, width = random_cut(image.shape[-2], image.shape[-1], draw[:4], preparation.scale)
        part = image[None, :, top : top + height, left : left + width]
        cuts.append(_resize(part, (size, size), preparation))
    whole = torch.cat(cuts)
    return torch.where(flips[:, None, None, None], whole.flip(3), whole)
