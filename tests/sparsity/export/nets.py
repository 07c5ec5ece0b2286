"""What the tests of exports share: nets, masks, images, and the masked net to compare with."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def masked(model: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    """The reference: the same net with zeros."""
    copied = copy.deepcopy(model)
    for name, parameter in copied.named_parameters():
        if name in masks:
            parameter.data *= masks[name]
    return copied.eval()


def images(*shape: int, seed: int = 1) -> Tensor:
    """The same random numbers at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give a net the state of a trained one: every BatchNorm with its own scale, shift and statistics."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            n = module.num_features
            module.weight.data = 0.5 + torch.rand(n, generator=generator)
            module.bias.data = 0.5 * torch.randn(n, generator=generator)
            module.running_mean = 0.3 * torch.randn(n, generator=generator)
            module.running_var = 0.5 + torch.rand(n, generator=generator)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight.data
            weight.copy_(torch.randn(weight.shape, generator=generator) / weight[0].numel() ** 0.5)
    return model.eval()


def filter_masks(model: nn.Module, share: float, groups: list[list[str]], seed: int = 0) -> dict[str, Tensor]:
    """Kill a share of the filters, the same ones in all layers of a group."""
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(model.named_parameters())
    masks = {}
    for names in groups:
        filters = len(parameters[names[0]])
        alive = torch.zeros(filters, dtype=torch.bool)
        alive[torch.randperm(filters, generator=generator)[: max(1, round(filters * (1 - share)))]] = True
        for name in names:
            shape = parameters[name].shape
            masks[name] = alive.view(-1, *[1] * (len(shape) - 1)).expand(shape).clone()
    return masks


def conv(inputs: int, outputs: int, **options) -> list[nn.Module]:
    """A convolution, its BatchNorm and a ReLU."""
    return [nn.Conv2d(inputs, outputs, 3, **options), nn.BatchNorm2d(outputs), nn.ReLU()]


class Residual(nn.Module):
    """Two stages of a residual net: an identity and a strided 1 x 1 projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv(3, 8, padding=1))
        self.body1 = nn.Sequential(*conv(8, 6, padding=1), nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.body2 = nn.Sequential(
            *conv(8, 10, padding=1, stride=2), nn.Conv2d(10, 12, 3, padding=1), nn.BatchNorm2d(12)
        )
        self.project = nn.Sequential(nn.Conv2d(8, 12, 1, stride=2, bias=False), nn.BatchNorm2d(12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.body1(x))
        x = F.relu(self.project(x) + self.body2(x))
        return self.head(x.mean((2, 3)))


RESIDUAL_GROUPS = [
    ["stem.0.weight", "body1.3.weight"],
    ["body1.0.weight"],
    ["body2.0.weight"],
    ["body2.3.weight", "project.0.weight"],
]
