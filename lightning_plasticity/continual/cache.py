"""Features that never change, kept by the number of their image for as long as a session lasts."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class FeatureCache:
    """Features of one session's images.

    Worth it where neither the images (no augmentation) nor the learner (slow, pre-trained) change.

    Args:
        batches: images, labels and numbers `[B]` of all images of the session.
        features: gives the features `[B, d]` of images.

    >>> cache = FeatureCache([(torch.eye(2), None, torch.tensor([7, 3]))], lambda images: 2 * images)
    >>> cache.take(torch.tensor([3, 7]))
    tensor([[0., 2.],
            [2., 0.]])
    """

    def __init__(self, batches: Iterable[Any], features: Callable[[Tensor], Tensor]) -> None:
        kept = [(features(images), number) for images, _, number in batches]
        numbers, order = torch.cat([number for _, number in kept]).sort()
        self._numbers, self._features = numbers, torch.cat([part for part, _ in kept])[order]

    def take(self, numbers: Tensor) -> Tensor:
        """Features `[B, d]` of the images of these numbers.

        Raises:
            ValueError: for a number that is not among them.
        """
        place = torch.searchsorted(self._numbers, numbers).clamp(max=len(self._numbers) - 1)
        if not bool((self._numbers[place] == numbers).all()):
            raise ValueError("an image is not of this session: its features are not kept")
        return self._features[place]
