"""Random views of images at hand that stand for images no longer there.

Nothing of an old session is stored. But what a net's drift does to a stroke, an edge or a corner can be seen
on any image that has some; so the current session's images are turned, scaled, mirrored, moved and cut
together until they cover more than their own classes.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

DRAWS = 15  # uniform numbers that one view takes


def surrogate_views(images: Tensor, draws: Tensor) -> Tensor:
    """One random view of each image: turned up to 60 degrees, scaled, mirrored, moved; half are cut together.

    A view that is cut together shows one turned version of the image on one side of a random line, and
    another one on the other side.

    Args:
        images: `[B, C, H, W]`; what comes in from outside repeats the border.
        draws: uniform numbers in [0, 1), `[B, 15]`: all that is random.

    Returns:
        `[B, C, H, W]`.

    >>> views = surrogate_views(torch.zeros(2, 3, 8, 8), torch.rand(2, DRAWS))
    >>> views.shape
    torch.Size([2, 3, 8, 8])
    """
    draws = draws.to(images)
    one, other = (_turned(images, part) for part in (draws[:, :6], draws[:, 6:12]))
    angle, offset = 2 * math.pi * draws[:, 12], 0.6 * (draws[:, 13] - 0.5)
    rows, columns = (torch.linspace(-1, 1, size).to(images) for size in images.shape[-2:])
    across = columns * angle.cos()[:, None, None] + rows[:, None] * angle.sin()[:, None, None]
    keep = (across > offset[:, None, None]) | (draws[:, 14] < 0.5)[:, None, None]
    return torch.where(keep.unsqueeze(1), one, other)


def _turned(images: Tensor, draws: Tensor) -> Tensor:
    """An affine view; `draws [B, 6]`: angle, scale, two mirrors, two shifts."""
    angle = (draws[:, 0] - 0.5) * 2 * math.pi / 3
    scale = 0.7 + 0.6 * draws[:, 1]
    mirror = torch.where(draws[:, 2:4] < 0.5, -1.0, 1.0)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    theta = torch.cat(
        [turn * scale.view(-1, 1, 1) * mirror.unsqueeze(1), 0.4 * (draws[:, 4:6, None] - 0.5)], 2
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
