"""Ridge regression from sums: Cholesky factors, and a search of the penalty on held-out sums."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_plasticity.continual.statistics import RidgeStatistics

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)
SEARCH_FROM = 1024  # random features from which the penalty is searched on a half of them


def solve_ridge(gram: Tensor, cross: Tensor, penalty: float) -> Tensor:
    """``(G + lambda I)^-1 Q`` by a Cholesky factor.

    Args:
        gram: `G [M, M]`, symmetric and positive semi-definite up to rounding.
        cross: `Q [M, C]`.
        penalty: `lambda`, positive.

    Returns:
        `[M, C]`.

    Raises:
        ValueError: if the factor fails with a hundredfold penalty in float64 too, as for sums that are not
            finite.

    >>> solve_ridge(torch.eye(2), torch.tensor([[2.0], [4.0]]), 1.0)
    tensor([[1.],
            [2.]])
    """
    for dtype, factor in ((gram.dtype, 1.0), (torch.float64, 1.0), (torch.float64, 100.0)):
        damped = gram.to(dtype, copy=True)
        damped.diagonal().add_(penalty * factor)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            return torch.cholesky_solve(cross.to(dtype), lower).to(cross.dtype)
    raise ValueError(f"the Gram matrix is not positive definite with penalty={penalty}: are its sums finite?")


def choose_penalty(fit: RidgeStatistics, held: RidgeStatistics, penalties: Sequence[float]) -> float:
    """The penalty whose solution on `fit` has the least squared error on `held`.

    With many random features the search runs on the first half of them, an eighth of the work. They are as
    random as the others, and a kernel of half the features is half as large, ``h^T h = sum_m h_m^2``: a
    penalty for all is one of half its size for half of them.

    Args:
        fit: sums to solve on.
        held: sums to compare on; without any sample the middle one of the penalties is taken.
        penalties: candidates, ascending.
    """
    if len(penalties) == 1 or not held.size or not fit.size:
        return penalties[len(penalties) // 2]
    width = len(fit.gram)
    part = width if width < SEARCH_FROM else width // 2
    # a comparison of decades needs no more than single precision
    gram, cross = fit.gram[:part, :part].float(), fit.cross[:part].float()
    errors = torch.stack(
        [held.squared_error(solve_ridge(gram, cross, penalty * part / width)) for penalty in penalties]
    )
    return penalties[int(errors.argmin())]
