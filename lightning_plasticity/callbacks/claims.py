"""Which parameters a sparse training callback masks: claimed by no other, held by an optimizer, coupled."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from lightning.fabric.utilities import move_data_to_device
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from lightning_plasticity.sparsity.export import filter_groups

P = TypeVar("P", bound=Tensor)


def check_claims(
    who: str, parameters: Mapping[str, Tensor], others: Iterable[tuple[str, Mapping[str, Tensor]]]
) -> None:
    """Refuse parameters that another callback masks already.

    Args:
        who: The callback that claims them.
        parameters: Name to parameter.
        others: Name of each other callback, and what it masks.

    Raises:
        MisconfigurationException: Names both callbacks and the parameters.
    """
    mine = {id(p) for p in parameters.values()}
    for other, theirs in others:
        if shared := [name for name, p in theirs.items() if id(p) in mine]:
            raise MisconfigurationException(
                f"{who} and {other} both mask {shared}: give each its own layers with include=[...] or "
                "exclude=[...]."
            )


def by_optimizer(
    parameters: Mapping[str, P], optimizers: Sequence[Optimizer]
) -> list[tuple[Optimizer, dict[str, P]]]:
    """Sort parameters by the optimizer that holds them; optimizers that hold none are left out.

    Raises:
        MisconfigurationException: Names the parameters that no optimizer holds.
    """
    owners = {name: optimizer_of(p, optimizers) for name, p in parameters.items()}
    if orphans := [name for name, owner in owners.items() if owner is None]:
        raise MisconfigurationException(
            f"no optimizer received these masked parameters: {orphans}. Return them from "
            f"configure_optimizers, or leave them dense with exclude={orphans[:1]}."
        )
    sorted_out = (
        (optimizer, {name: p for name, p in parameters.items() if owners[name] is optimizer})
        for optimizer in optimizers
    )
    return [(optimizer, mine) for optimizer, mine in sorted_out if mine]


def optimizer_of(parameter: Tensor, optimizers: Iterable[Optimizer]) -> Optimizer | None:
    """The optimizer that holds a parameter."""
    for optimizer in optimizers:
        if any(parameter is held for group in optimizer.param_groups for held in group["params"]):
            return optimizer
    return None


def coupled_groups(coupled: bool | list[list[str]], pl_module: LightningModule) -> list[list[str]]:
    """Groups of parameters whose filters go together: none, those given, or found by a trial run.

    Raises:
        MisconfigurationException: If the module has no example of its inputs for the trial run.
    """
    if not isinstance(coupled, bool):
        return coupled
    if not coupled:
        return []
    inputs = pl_module.example_input_array
    if inputs is None:
        raise MisconfigurationException(
            "coupled=True looks for filters that go together by a trial run, and the module has no "
            "example_input_array: set it, or give coupled=filter_groups(model, inputs)."
        )
    if isinstance(inputs, Mapping):
        raise MisconfigurationException(
            "coupled=True needs an example_input_array of positional inputs, it is a mapping: "
            "give coupled=filter_groups(model, inputs)."
        )
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    return filter_groups(pl_module, move_data_to_device(inputs, pl_module.device))
