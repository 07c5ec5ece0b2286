"""Which parameters of a model are masked: by module type, or by the user's name patterns."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lightning_plasticity.sparsity.granularity import Filters, Granularity


def maskable_parameters(
    model: nn.Module,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    granularity: Granularity | str = "weight",
) -> dict[str, nn.Parameter]:
    """Choose the parameters that a sparse training method masks.

    Without ``include``: the weights of linear, convolution and attention-projection layers (first layer and
    classifier too, as in the GraNet code), of convolutions only for granularity ``"filter"``. Biases,
    normalisation layers, embeddings and frozen parameters stay dense. Tied weights are listed once, under
    their first name.

    A pattern matches a parameter's full name or the name of any module that holds it, with shell wildcards:
    ``"classifier"``, ``"layer1.*"``, ``"*.fc?.weight"``.

    Args:
        model: The model, its parameters named as in ``named_parameters()``.
        include: Patterns. If given, exactly the matching parameters with 2 or more dimensions are candidates,
            of any module type.
        exclude: Patterns of parameters that stay dense.
        granularity: ``"weight"``, ``"filter"`` or N:M; refuses shapes that it cannot mask.

    Returns:
        Parameter name to parameter, in the model's order.

    Raises:
        ValueError: If a pattern matches nothing, ``include`` names a frozen parameter, the granularity does
            not fit a chosen parameter, or nothing is left to mask.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        >>> list(maskable_parameters(net, exclude=["2"]))
        ['0.weight']
    """
    pattern = Granularity.parse(granularity)
    everything = dict(model.named_parameters())
    for argument, patterns in (("include", include), ("exclude", exclude)):
        check_patterns(argument, patterns, everything)
    if include:
        chosen = {name: p for name, p in everything.items() if p.dim() >= 2 and matches(name, include)}
        if frozen := [
            name for name, p in chosen.items() if not p.requires_grad and not matches(name, exclude)
        ]:
            raise ValueError(
                f"include={list(include)} names frozen parameters, which cannot be rewired: {frozen}. "
                "Unfreeze them before the fit starts or leave them out."
            )
    else:
        chosen = _by_module_type(model, everything, convolutions_only=isinstance(pattern, Filters))
    chosen = {name: p for name, p in chosen.items() if p.requires_grad and not matches(name, exclude)}
    if not chosen:
        raise ValueError(
            f"the model has nothing to mask with include={list(include)}, exclude={list(exclude)}, "
            f"granularity='{pattern}': it needs trainable weights of "
            f"{'convolution' if isinstance(pattern, Filters) else 'linear or convolution'} layers. "
            "Name others with include=['pattern']."
        )
    if problems := [text for name, p in chosen.items() if (text := pattern.problem(name, p.shape))]:
        raise ValueError(
            f"granularity='{pattern}' does not fit: {'; '.join(problems)}. "
            "Leave these layers dense with exclude=[...] or choose another granularity."
        )
    transposed = _transposed_names(model, chosen)
    if transposed and not pattern.allows_transposed:
        raise ValueError(
            f"granularity='{pattern}' is not defined for transposed convolutions (their filters are not the "
            f"first dimension): {transposed}. Leave them dense with exclude={transposed}."
        )
    return chosen


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Tell whether a pattern matches the parameter's name or the name of a module that holds it."""
    parts = name.split(".")
    owners = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    return any(fnmatchcase(owner, pattern) for pattern in patterns for owner in owners)


def check_patterns(argument: str, patterns: Sequence[str], names: Mapping[str, object]) -> None:
    """Refuse patterns that match no parameter.

    Raises:
        ValueError: Names the argument, the pattern and some of the names there are.
    """
    if isinstance(patterns, str):
        raise ValueError(f"{argument}='{patterns}' must be a list of patterns: {argument}=['{patterns}']")
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in names):
            raise ValueError(
                f"{argument}: the pattern '{pattern}' matches no parameter. "
                f"Names look like {', '.join(list(names)[:6])}{' ...' if len(names) > 6 else ''}."
            )


_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def _by_module_type(
    model: nn.Module, everything: Mapping[str, nn.Parameter], convolutions_only: bool
) -> dict[str, nn.Parameter]:
    wanted: set[int] = set()
    for module in model.modules():
        if isinstance(module, _ConvNd):
            if not (convolutions_only and isinstance(module, _ConvTransposeNd)):
                wanted.add(id(module.weight))
        elif convolutions_only:
            continue
        elif isinstance(module, nn.Linear):
            wanted.add(id(module.weight))
        elif isinstance(module, nn.MultiheadAttention):
            wanted.update(id(getattr(module, name, None)) for name in _ATTENTION)
    return {name: p for name, p in everything.items() if id(p) in wanted}


def _transposed_names(model: nn.Module, chosen: Mapping[str, nn.Parameter]) -> list[str]:
    transposed = {id(m.weight) for m in model.modules() if isinstance(m, _ConvTransposeNd)}
    return [name for name, p in chosen.items() if id(p) in transposed]
