"""Lazy scores: a layer's scores as a function of its tensors, computed piece by piece, never as a whole."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

TAKES_OUT = (torch.abs, torch.square, torch.mul)  # score functions that can write into a buffer
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class LazyScores:
    """Scores of one layer in logical (row-major) order, whatever the layout of its tensors in memory.

    Args:
        function: Element-wise and pure: it is called on flat pieces, maybe more than once on the same.
        tensors: What the function is called with, all of one shape and device.
        eligible: Bool, same shape: entries outside rank below every other score, -inf included. None: all in.

    Raises:
        ValueError: If shapes or devices differ, ``eligible`` is not bool, or scores are not floating point.

    Example:
        >>> scores = LazyScores(torch.abs, (torch.tensor([[1.0, -2.0], [-3.0, 4.0]]),))
        >>> scores.read(1, 3)
        tensor([2., 3.])
    """

    function: Callable[..., Tensor]
    tensors: tuple[Tensor, ...]
    eligible: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.tensors:
            raise ValueError("tensors=() must hold at least one tensor")
        if self.eligible is not None and self.eligible.dtype != torch.bool:
            raise ValueError(f"eligible has dtype {self.eligible.dtype}, it must be bool")
        for tensor in self._all:
            if tensor.shape != self.shape or tensor.device != self.device:
                raise ValueError(
                    f"tensors and eligible must have one shape and device, found {tuple(tensor.shape)} on "
                    f"{tensor.device} beside {tuple(self.shape)} on {self.device}"
                )
        if self.dtype not in FLOATS:
            raise ValueError(
                f"scores have dtype {self.dtype}, they must be one of {FLOATS}; convert with .float()"
            )

    @property
    def _all(self) -> tuple[Tensor, ...]:
        return self.tensors if self.eligible is None else (*self.tensors, self.eligible)

    @property
    def shape(self) -> torch.Size:
        """Shape of the layer."""
        return self.tensors[0].shape

    @property
    def device(self) -> torch.device:
        """Device of the layer."""
        return self.tensors[0].device

    @property
    def dtype(self) -> torch.dtype:
        """What the function returns."""
        return self.function(*(tensor.new_empty(0) for tensor in self.tensors)).dtype

    @property
    def numel(self) -> int:
        """Number of scores."""
        return self.tensors[0].numel()

    def read(self, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Scores ``start`` to ``stop`` in row-major order, eligible or not, ``[stop - start]``.

        Args:
            start: First score.
            stop: One past the last.
            out: Where to write them, of the same or a wider dtype: fresh memory costs page faults.
        """
        pieces = [flat_piece(tensor, start, stop) for tensor in self.tensors]
        if out is None:
            return self.function(*pieces)
        if self.function in TAKES_OUT and all(tensor.dtype == out.dtype for tensor in self.tensors):
            return self.function(*pieces, out=out)
        return out.copy_(self.function(*pieces))

    def read_eligible(self, start: int, stop: int) -> Tensor | None:
        """Which of scores ``start`` to ``stop`` are eligible, bool ``[stop - start]``; None for all."""
        return None if self.eligible is None else flat_piece(self.eligible, start, stop)

    def sample(self, start: int, stride: int) -> Tensor:
        """Every ``stride``-th score from ``start`` on, without those that are not eligible, 1-d."""
        pieces = [_strided(tensor, start, stride) for tensor in self._all]
        scores = self.function(*pieces[: len(self.tensors)])
        return scores if self.eligible is None else scores[pieces[-1]]


def masked_scores(
    function: Callable[..., Tensor], tensors: Sequence[Tensor], eligible: Tensor | None = None
) -> LazyScores:
    """Score only the entries where ``eligible``; all others rank below them.

    So an active weight of exactly 0 ranks above every inactive one, and a NaN elsewhere has no effect.

    Example:
        >>> weight, mask = torch.tensor([3.0, -4.0, 0.0, 9.0]), torch.tensor([True, True, True, False])
        >>> masked_scores(torch.abs, [weight], mask).sample(0, 1)
        tensor([3., 4., 0.])
    """
    return LazyScores(function, tuple(tensors), eligible)


def common_dtype(parts: Sequence[LazyScores]) -> torch.dtype:
    """The dtype that holds the scores of all parts exactly."""
    return reduce(torch.promote_types, (part.dtype for part in parts))


def spans(numel: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut ``range(numel)`` into ``(start, stop)`` of at most ``size``."""
    return ((start, min(start + size, numel)) for start in range(0, numel, size))


def flat_piece(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Entries ``start`` to ``stop`` in row-major order: a view if contiguous, else a small copy."""
    if tensor.is_contiguous():
        return tensor.view(-1)[start:stop]
    row = tensor[0].numel()
    first, last = start // row, -(-stop // row)
    if last - first == 1 and tensor.dim() > 1:
        return flat_piece(tensor[first], start - first * row, stop - first * row)
    return tensor[first:last].reshape(-1)[start - first * row : stop - first * row]


def _strided(tensor: Tensor, start: int, stride: int) -> Tensor:
    if tensor.is_contiguous():
        return tensor.view(-1)[start::stride]
    positions = torch.arange(start, tensor.numel(), stride, device=tensor.device)
    return tensor[torch.unravel_index(positions, tensor.shape)]
