"""Convolutional nets of the sparse-training papers, in their CIFAR form, and a small one for digits.

All take float32 images [B, C, H, W] of any size from 8 x 8 and give logits [B, num_classes].
"""

import difflib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu


def _norm_relu(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


def _conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def _kaiming(model: nn.Module) -> None:
    """Draw the convolutions as in He et al. 2015, for ReLU, keeping the gradients' scale."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class SmallConvNet(nn.Sequential):
    """Three convolutions with BatchNorm and ReLU, then a linear layer: quick on two CPU cores.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
        width: filters of the first convolution; the next have 4 and 10 times as many.

    Example:
        >>> SmallConvNet()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, width: int = 16) -> None:
        super().__init__(
            _conv3(in_channels, width),
            *_norm_relu(width),
            nn.MaxPool2d(2),
            _conv3(width, 4 * width),
            *_norm_relu(4 * width),
            nn.MaxPool2d(2),
            _conv3(4 * width, 10 * width),
            *_norm_relu(10 * width),
            nn.AdaptiveAvgPool2d(
                2
            ),  # where a stroke is tells digits apart: 97.5 % after 6 epochs, 95.8 % with 1
            nn.Flatten(),
            nn.Linear(4 * 10 * width, num_classes),
        )
        _kaiming(self)


class _Residual(nn.Module):
    """``relu(body(x) + shortcut(x))``; the shortcut is a 1 x 1 convolution where the shapes differ."""

    def __init__(self, body: nn.Sequential, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = body
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, images: Tensor) -> Tensor:
        """Add what the body has learned."""
        return relu(self.body(images) + self.shortcut(images))


def _basic(inputs: int, planes: int, stride: int) -> _Residual:
    body = nn.Sequential(
        _conv3(inputs, planes, stride),
        *_norm_relu(planes),
        _conv3(planes, planes),
        nn.BatchNorm2d(planes),
    )
    return _Residual(body, inputs, planes, stride)


def _bottleneck(inputs: int, planes: int, stride: int) -> _Residual:
    body = nn.Sequential(
        nn.Conv2d(inputs, planes, 1, bias=False),
        *_norm_relu(planes),
        _conv3(planes, planes, stride),
        *_norm_relu(planes),
        nn.Conv2d(planes, 4 * planes, 1, bias=False),
        nn.BatchNorm2d(4 * planes),
    )
    return _Residual(body, inputs, 4 * planes, stride)


class ResNet(nn.Module):
    """A residual net with a 3 x 3 stem (He et al. 2016, section 4.2: the CIFAR form).

    Args:
        block: makes a block from (input channels, planes, stride).
        expansion: output channels of a block per plane.
        depths: blocks of each stage; every stage but the first halves the resolution and doubles the planes.
        planes: planes of the first stage.
        num_classes: number of logits.
        in_channels: channels of the images.
    """

    def __init__(
        self,
        block: Callable[[int, int, int], _Residual],
        expansion: int,
        depths: tuple[int, ...],
        planes: int,
        num_classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv3(in_channels, planes), *_norm_relu(planes))
        stages, channels = [], planes
        for stage, depth in enumerate(depths):
            wide = planes * 2**stage
            blocks = []
            for position in range(depth):
                blocks.append(block(channels, wide, 2 if stage and position == 0 else 1))
                channels = expansion * wide
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels, num_classes)
        _kaiming(self)

    def forward(self, images: Tensor) -> Tensor:
        """Give logits [B, num_classes]."""
        features = self.stages(self.stem(images))
        return torch.as_tensor(self.classifier(features.mean((2, 3))))


def resnet20(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-20 (He et al. 2016), 0.27 M parameters; shortcuts that change shape are 1 x 1 convolutions."""
    return ResNet(_basic, 1, (3, 3, 3), 16, num_classes, in_channels)


def resnet50_cifar(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-50 with a 3 x 3 stem and no pooling: 54 weight tensors, 23.47 M weights at 10 classes."""
    return ResNet(_bottleneck, 4, (3, 4, 6, 3), 64, num_classes, in_channels)


class VGG(nn.Sequential):
    """VGG with BatchNorm and one linear layer (Simonyan & Zisserman 2015, in the form used on CIFAR).

    Args:
        depths: convolutions of the five stages, of 64, 128, 256, 512 and 512 filters.
        num_classes: number of logits.
        in_channels: channels of the images.
    """

    def __init__(self, depths: tuple[int, ...], num_classes: int, in_channels: int) -> None:
        layers: list[nn.Module] = []
        channels = in_channels
        for stage, (depth, filters) in enumerate(zip(depths, (64, 128, 256, 512, 512), strict=True)):
            if stage:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
            for _ in range(depth):
                layers += [_conv3(channels, filters), *_norm_relu(filters)]
                channels = filters
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
        _kaiming(self)


def vgg16(num_classes: int = 10, in_channels: int = 3) -> VGG:
    """VGG-16 with BatchNorm for CIFAR: 13 convolutions and a linear layer, 14.7 M parameters."""
    return VGG((2, 2, 3, 3, 3), num_classes, in_channels)


def vgg19(num_classes: int = 10, in_channels: int = 3) -> VGG:
    """VGG-19 with BatchNorm for CIFAR: 16 convolutions and a linear layer, 20.0 M parameters."""
    return VGG((2, 2, 4, 4, 4), num_classes, in_channels)


class LeNet300(nn.Sequential):
    """LeNet-300-100 (LeCun et al. 1998): two hidden layers, the net of many pruning papers.

    Images of another size than 28 x 28 are averaged or repeated to it.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.

    Example:
        >>> LeNet300()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__(
            nn.AdaptiveAvgPool2d(28),
            nn.Flatten(),
            nn.Linear(28 * 28 * in_channels, 300),
            nn.ReLU(),
            nn.Linear(300, 100),
            nn.ReLU(),
            nn.Linear(100, num_classes),
        )


OWN_MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "small_convnet": SmallConvNet,
    "lenet300": LeNet300,
    "resnet20": resnet20,
    "resnet50_cifar": resnet50_cifar,
    "vgg16": vgg16,
    "vgg19": vgg19,
}


def _timm() -> Any:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"Models other than {', '.join(OWN_MODELS)} come from timm: "
            "pip install 'lightning-plasticity[recipes]'"
        ) from error
    return timm


def create_model(
    name: str, num_classes: int = 10, in_channels: int = 3, *, pretrained: bool = False
) -> nn.Module:
    """Make a network by name: one of ours, else one of timm's.

    Args:
        name: ``small_convnet``, ``lenet300``, ``resnet20``, ``resnet50_cifar``, ``vgg16``, ``vgg19``, or a
            name of timm; after ``timm/`` always one of timm, such as its own ``timm/vgg16``.
        num_classes: number of logits.
        in_channels: channels of the images.
        pretrained: let timm fetch its weights.

    Returns:
        The network, images [B, in_channels, H, W] to logits [B, num_classes].

    Raises:
        ValueError: if the name is unknown, a number is below 1, or one of ours shall be pre-trained.
        ModuleNotFoundError: if timm is needed and missing.

    Example:
        >>> sum(p.numel() for p in create_model("resnet20").parameters())
        272474
    """
    for argument, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value < 1:
            raise ValueError(f"{argument}={value!r} must be 1 or more.")
    if name in OWN_MODELS:
        if pretrained:
            raise ValueError(f"pretrained=True: there are no weights for {name!r}; set it to false.")
        return OWN_MODELS[name](num_classes, in_channels)
    timm, short = _timm(), name.removeprefix("timm/")
    if not timm.is_model(short):
        close = difflib.get_close_matches(name, [*OWN_MODELS, *timm.list_models()], n=3)
        raise ValueError(
            f"model={name!r} is unknown; {'did you mean ' + ' or '.join(close) + '? ' if close else ''}"
            f"Known are {', '.join(OWN_MODELS)} and all of timm.list_models()."
        )
    model: nn.Module = timm.create_model(
        short, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels
    )
    return model
