"""Ridge regression from sums: Cholesky factors, and a search of the penalty on held-out sums."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_plasticity.continual.statistics import RidgeStatistics

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)
SEARCH_FROM = 1024  # random features from which the penalty is searched on a half of them
_REFINEMENTS, _CLOSE = 10, 1e-6  # steps at most, and the relative size of the last one


def solve_ridge(gram: Tensor, cross: Tensor, penalty: float) -> Tensor:
    """``(G + lambda I)^-1 Q`` by a Cholesky factor.

    Large sums in float64 are factored in float32, at half the cost, and the solution is refined to float64 by
    its residuals, as LAPACK's dsposv does; where that does not converge they are factored in float64.

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
    if gram.dtype == torch.float64 and len(gram) >= SEARCH_FROM:
        solution = _refined(gram, cross, penalty)
        if solution is not None:
            return solution
    for dtype, factor in ((gram.dtype, 1.0), (torch.float64, 1.0), (torch.float64, 100.0)):
        damped = gram.to(dtype, copy=True)
        damped.diagonal().add_(penalty * factor)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            return _substitute(lower, cross.to(dtype)).to(cross.dtype)
    raise ValueError(f"the Gram matrix is not positive definite with penalty={penalty}: are its sums finite?")


def _substitute(lower: Tensor, right: Tensor) -> Tensor:
    """Solves ``L L^T x = b``: torch.cholesky_solve copies the factor, and takes four times as long."""
    half = torch.linalg.solve_triangular(lower, right, upper=False)
    solution: Tensor = torch.linalg.solve_triangular(lower.mT, half, upper=True)
    return solution


def _refined(gram: Tensor, cross: Tensor, penalty: float) -> Tensor | None:
    """The solution in float64 from a factor in float32; None if its steps do not shrink as they should."""
    damped = gram.float()
    damped.diagonal().add_(penalty)
    lower, failed = torch.linalg.cholesky_ex(damped)
    solution, residual = torch.zeros_like(cross), cross
    for _ in range(0 if int(failed) else _REFINEMENTS):
        step = _substitute(lower, residual.float()).to(cross.dtype)
        solution += step
        if bool((step.norm(dim=0) <= _CLOSE * solution.norm(dim=0)).all()):
            return solution
        residual = cross - gram @ solution - penalty * solution
    return None


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
