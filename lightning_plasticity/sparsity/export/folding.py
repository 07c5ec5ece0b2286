"""Taking constant input channels and BatchNorm out of a layer without changing what it computes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd


class _Bordered(_ConvNd):
    r"""A convolution that still knows the constant channels that were cut from its input.

    Zero padding makes a constant channel fall to 0 outside the image, so that its part of the output is not a
    mere bias: it differs along the border. With c_k the constant of cut channel k, and taps[o] = sum_k c_k
    W[o, k],

        y = W * pad(x) + taps * pad(1) + bias

    is exact for any image size. The map ``taps * pad(1)`` has no batch dimension and is kept until the size
    changes.
    """

    taps: Tensor
    border: Tensor | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("taps", self.weight.new_zeros(self.out_channels, 1, *self.kernel_size).detach())
        self.register_buffer("border", None, persistent=False)
        self._border_size: tuple[int, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` ``[N, in_channels, *size]`` and add the border map."""
        size = tuple(x.shape[2:])
        if self.border is None or size != self._border_size:
            with torch.inference_mode(False), torch.no_grad():
                ones = self.taps.new_ones(1, 1, *size)
                self.border, self._border_size = self._conv_forward(ones, self.taps, None), size
        y: Tensor = super().forward(x)
        return y + self.border if y.requires_grad else y.add_(self.border)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.border = None  # it belongs to the old taps
        super()._load_from_state_dict(*args, **kwargs)


class BorderedConv1d(_Bordered, nn.Conv1d):
    """:class:`torch.nn.Conv1d` with the taps of constant channels that were cut from its input."""


class BorderedConv2d(_Bordered, nn.Conv2d):
    """:class:`torch.nn.Conv2d` with the taps of constant channels that were cut from its input."""


class BorderedConv3d(_Bordered, nn.Conv3d):
    """:class:`torch.nn.Conv3d` with the taps of constant channels that were cut from its input."""


_BORDERED: dict[type[nn.Module], type[_Bordered]] = {
    nn.Conv1d: BorderedConv1d,
    nn.Conv2d: BorderedConv2d,
    nn.Conv3d: BorderedConv3d,
}

FOLDABLE: tuple[type[nn.Module], ...] = (nn.Linear, *_BORDERED, *_BORDERED.values())
"""Layers whose arithmetic is known exactly; subclasses may standardise or scale their weights."""


def is_foldable(module: nn.Module) -> bool:
    """Tell whether a constant input channel can be folded: linear, or convolution in one group."""
    return type(module) in FOLDABLE and getattr(module, "groups", 1) == 1


def bordered(conv: nn.Module) -> _Bordered:
    """Give a plain convolution taps (zeros at first); the parameters are shared, not copied."""
    if isinstance(conv, _Bordered):
        return conv
    kind = _BORDERED[type(conv)]
    assert isinstance(conv, _ConvNd)
    new = kind(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=False,
        padding_mode=conv.padding_mode,
        device="meta",
    )
    new.weight, new.bias = conv.weight, conv.bias
    new.taps = torch.zeros_like(conv.weight.detach()[:, :1])
    return new.train(conv.training)


def constant_part(layer: nn.Module, constants: Tensor) -> Tensor:
    """Sum what constant input channels contribute to each output of a layer, in double precision.

    Args:
        layer: Linear, or convolution in one group.
        constants: ``[in_channels]``, 0 for channels that stay.

    Returns:
        ``[out_features]`` for linear; taps ``[out_channels, 1, *kernel]`` for a convolution.
    """
    assert isinstance(layer.weight, Tensor)
    weight = layer.weight.detach().double()
    contribution: Tensor = torch.tensordot(weight, constants.to(weight), dims=([1], [0]))
    return contribution if isinstance(layer, nn.Linear) else contribution.unsqueeze(1)


def pads_with_zeros(layer: nn.Module) -> bool:
    """Tell whether a convolution sees zeros beyond the border (reflection keeps a constant constant)."""
    if not isinstance(layer, _ConvNd) or layer.padding_mode != "zeros" or layer.padding == "valid":
        return False
    return layer.padding == "same" or any(size != 0 for size in layer.padding)


@torch.no_grad()
def add_constant(layer: nn.Module, part: Tensor) -> nn.Module:
    """Add the constant part of cut channels to a layer: to its bias where that is exact, else to its taps.

    Args:
        layer: Linear or convolution; its bias is changed or made.
        part: As :func:`constant_part` gives it.

    Returns:
        The layer, or a bordered convolution that takes its place.
    """
    if not part.any():
        return layer
    if pads_with_zeros(layer):
        layer = bordered(layer)
        layer.taps = (layer.taps.double() + part).to(layer.weight.dtype)
        layer.border = None
        return layer
    _set_bias(layer, part.flatten(1).sum(1) if part.dim() > 1 else part)
    return layer


def _set_bias(layer: nn.Module, extra: Tensor) -> None:
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, nn.Parameter)
    value = bias.detach().double() + extra if isinstance(bias, Tensor) else extra
    layer.bias = nn.Parameter(value.to(weight.dtype), requires_grad=weight.requires_grad)


@torch.no_grad()
def fuse_batch_norm(conv: nn.Module, norm: nn.Module) -> None:
    """Fold a BatchNorm that follows a convolution into its weight, bias and taps, in place.

    With scale = gamma / sqrt(var + eps): W <- scale W, taps <- scale taps, b <- scale (b - mean) + beta.

    Args:
        conv: Convolution, plain or bordered.
        norm: BatchNorm with running statistics, in evaluation mode.
    """
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight = conv.weight
    assert isinstance(weight, nn.Parameter)
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.double()
    column = scale.view(-1, *[1] * (weight.dim() - 1))
    shift = -norm.running_mean.double() * scale
    if isinstance(conv.bias, Tensor):
        shift = shift + conv.bias.double() * scale
    if norm.affine:
        shift = shift + norm.bias.double()
    weight.copy_(weight.double() * column)
    conv.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=weight.requires_grad)
    if isinstance(conv, _Bordered):
        conv.taps, conv.border = (conv.taps.double() * column).to(weight.dtype), None
