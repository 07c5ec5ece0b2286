"""What masks have to know of an optimizer: which weights it holds, whether it stepped, what it keeps."""

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.optim import Optimizer

from lightning_plasticity.sparsity.masks import apply_masks_, local


def check_optimizer(optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> None:
    """Refuse an optimizer that does not hold all the masked parameters.

    Raises:
        ValueError: Names the parameters.
    """
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if missing := [name for name, p in parameters.items() if id(p) not in owned]:
        raise ValueError(
            f"the optimizer never received these masked parameters: {missing}. "
            "Give them to the optimizer, or leave them dense with exclude=[...]."
        )


def was_skipped(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer skipped the step just asked for, as its gradient scaler told it to."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)


def shaped_state(optimizer: Optimizer, parameter: Tensor) -> list[Tensor]:
    """The optimizer's state tensors that hold one number per weight, whatever the optimizer calls them."""
    return [
        value
        for value in optimizer.state.get(parameter, {}).values()
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.is_floating_point()
    ]


def zero_outside_(optimizer: Optimizer, parameters: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """Zero weights and their optimizer state outside the masks, in place."""
    tensors, keep = [], []
    for parameter, mask in zip(parameters, masks, strict=True):
        for tensor in (parameter, *shaped_state(optimizer, parameter)):
            tensors.append(local(tensor))
            keep.append(mask)
    apply_masks_(tensors, keep)
