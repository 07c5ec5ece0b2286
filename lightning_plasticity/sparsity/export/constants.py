"""Which channels of a net carry a constant.

A filter of zeros gives a channel that no longer depends on the input: after BatchNorm and ReLU it is a
number, not always zero. Here that number is found for every layer that reads the channel.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lightning_plasticity.sparsity.export.folding import FOLDABLE, is_foldable

Inputs: TypeAlias = Tensor | Sequence[Tensor]


def as_inputs(example_inputs: Inputs) -> tuple[Tensor, ...]:
    """Turn a tensor or a sequence of positional tensors into a tuple, and refuse what cannot be traced.

    Raises:
        ValueError: If an input is not a floating-point tensor.
    """
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    for position, value in enumerate(inputs):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"example_inputs[{position}] is {kind}: channels are followed through floating-point "
                "tensors only. Shrink the part of the model behind the embedding instead."
            )
    return inputs


def constant_inputs(model: nn.Module, example_inputs: Inputs) -> dict[str, Tensor]:
    """Find the input channels of every convolution and linear layer that do not depend on the model's input.

    The model runs once on NaN, in evaluation mode and double precision. A convolution or linear layer passes
    NaN on only along weights that are not zero, and every other operation passes it on by IEEE arithmetic, so
    that what is finite in the end cannot depend on the input. Runs on the real example and on its opposite,
    three times as strong, have to show the same numbers: this catches operations that swallow NaN, such as a
    comparison.

    Args:
        model: Any model; it is copied, not changed.
        example_inputs: The model's positional inputs.

    Returns:
        Layer name to a double tensor ``[in_channels]``: the constant of each channel, NaN where the channel
        depends on the input or is not the same number at every position. Only plain ungrouped layers that run
        once are listed.

    Example:
        >>> net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.copy_(torch.tensor([[1.0], [0.0]]))
        ...     _ = net[0].bias.copy_(torch.tensor([0.0, 0.5]))
        >>> constant_inputs(net, torch.ones(1, 1))["2"]
        tensor([   nan, 0.5000], dtype=torch.float64)
    """
    probe = deepcopy(model).double().eval()
    inputs = [value.detach().double() for value in as_inputs(example_inputs)]
    with torch.no_grad(), _nan_follows_weights(probe):
        proven = _record_inputs(probe, [torch.full_like(value, torch.nan) for value in inputs])
    with torch.no_grad():
        runs = [_record_inputs(probe, given) for given in (inputs, [-3 * value for value in inputs])]
    return {
        name: torch.where(_all_close([seen[name][0] for seen in runs], values[0]), values[0], torch.nan)
        for name, values in proven.items()
        if len(values) == 1 and all(len(seen[name]) == 1 for seen in runs)
    }


def _all_close(found: Sequence[Tensor], wanted: Tensor) -> Tensor:
    return torch.stack([torch.isclose(one, wanted, rtol=1e-9, atol=1e-12) for one in found]).all(0)


def _record_inputs(model: nn.Module, inputs: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """Run the model and keep one number per input channel of each foldable layer: its constant, else NaN."""
    record: dict[str, list[Tensor]] = {}

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            record.setdefault(name, []).append(_channel_constants(module, args[0]))

        return hook

    hooks = [
        m.register_forward_pre_hook(hook_of(name)) for name, m in model.named_modules() if is_foldable(m)
    ]
    try:
        model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return record


def _channel_constants(module: nn.Module, x: Tensor) -> Tensor:
    dim = -1 if isinstance(module, nn.Linear) else -1 - len(module.kernel_size)  # type: ignore[arg-type]
    flat = x.movedim(dim, 0).flatten(1) if x.dim() > 1 else x[:, None]
    low, high = flat.amin(1), flat.amax(1)
    same = torch.isclose(low, high, rtol=1e-9, atol=1e-12)
    return torch.where(same, low, torch.nan)


@contextmanager
def _nan_follows_weights(model: nn.Module) -> Iterator[None]:
    """Make plain layers pass NaN on along non-zero weights only (plain 0 * NaN would reach all outputs)."""

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert isinstance(module.weight, Tensor)
        unknown, connected = args[0].isnan().to(output.dtype), module.weight.ne(0).to(output.dtype)
        if isinstance(module, nn.Linear):
            reached = nn.functional.linear(unknown, connected)
        else:
            reached = module._conv_forward(unknown, connected, None)  # type: ignore[operator]
        known: Tensor = module.forward(args[0].nan_to_num(0.0))
        return known.masked_fill(reached > 0.5, torch.nan)

    hooks = [m.register_forward_hook(hook) for m in model.modules() if type(m) in FOLDABLE]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
