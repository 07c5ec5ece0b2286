"""FLOPs of a training run, integrated over the masks that it really had."""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence


def training_flops(
    dense_per_layer: Mapping[str, float],
    history: Sequence[tuple[int, Mapping[str, float]]],
    steps: int,
    *,
    dense_gradient_steps: Iterable[int] = (),
    batch_size: int = 1,
) -> float:
    """Integrate the FLOPs of training over the masks that the run really had.

    With f_S the sparse and f_D the dense forward FLOPs of a sample, an optimizer step costs ``3 f_S``: the
    forward pass, the gradient of the activations, the gradient of the weights. One whose weight gradient is
    dense, because growth reads it, costs ``2 f_S + f_D``. With the papers' accounting:

    * static masks and SET: ``3 f_S`` per step, no dense gradient;
    * gradual pruning (GMP): the mean over the steps of ``3 f(s_t)``, no dense gradient;
    * RigL (Evci et al. 2020, appendix), whose updates take a step of their own after every dT:
      ``(3 f_S dT + 2 f_S + f_D) / (dT + 1)``, so ``dense_gradient_steps=range(dT, steps, dT + 1)``;
    * GraNet: the mean of ``3 f(masks_t)``, and a dense gradient at every update, once per dT steps.

    Args:
        dense_per_layer: parameter name -> dense forward FLOPs of one sample (``Flops.dense_per_layer``).
        history: (first step, parameter name -> density), ascending from step 0: the densities hold from that
            step until the next entry. A layer that isn't named is dense; a name that is no counted layer (an
            embedding) costs nothing.
        steps: optimizer steps of the run, numbered from 0.
        dense_gradient_steps: the steps whose weight gradient is dense. An update after the gradient of step t
            changes the masks from step t + 1 on.
        batch_size: samples per optimizer step.

    Returns:
        FLOPs of the run; those of the dense run are ``3 f_D steps batch_size``.

    Raises:
        ValueError: if the history doesn't ascend from 0, no name in it is a counted layer, or a step lies
            outside the run.

    Example:
        >>> training_flops({"a": 10.0, "b": 90.0}, [(0, {"b": 1.0}), (50, {"b": 0.1})], steps=100)
        17850.0
    """
    starts = [start for start, _ in history]
    if starts[:1] != [0] or starts != sorted(set(starts)) or starts[-1] > steps:
        raise ValueError(f"history must ascend from step 0 to at most steps={steps}; its steps are {starts}.")
    named = {name for _, densities in history for name in densities}
    if named and named.isdisjoint(dense_per_layer):
        raise ValueError(
            f"history names no counted layer: {sorted(named)} against {sorted(dense_per_layer)}."
        )
    growing = sorted(set(dense_gradient_steps))
    if growing and not 0 <= growing[0] <= growing[-1] < steps:
        raise ValueError(
            f"dense_gradient_steps must lie in 0..{steps - 1}; they span {growing[0]}..{growing[-1]}."
        )
    dense = math.fsum(dense_per_layer.values())
    total = 0.0
    for (start, densities), stop in zip(history, [*starts[1:], steps], strict=True):
        sparse = math.fsum(flops * densities.get(name, 1.0) for name, flops in dense_per_layer.items())
        updates = bisect_left(growing, stop) - bisect_left(growing, start)
        total += 3 * sparse * (stop - start) + (dense - sparse) * updates
    return total * batch_size
