"""Networks and a plain image classifier for the recipes: what a user's own project would bring along."""

from lightning_plasticity.models.classifier import ImageClassifier
from lightning_plasticity.models.convnets import (
    LeNet300,
    SmallConvNet,
    create_model,
    resnet20,
    resnet50_cifar,
    vgg16,
    vgg19,
)

__all__ = [
    "ImageClassifier",
    "LeNet300",
    "SmallConvNet",
    "create_model",
    "resnet20",
    "resnet50_cifar",
    "vgg16",
    "vgg19",
]
