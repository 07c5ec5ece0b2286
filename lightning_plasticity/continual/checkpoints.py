"""What a checkpoint of SAFE holds: all that was learned, and which backbone it needs, not its weights."""

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_plasticity.continual.adapters import AdapterPair

KEY = "safe"
ADAPTERS = "learners.adapters."


def frozen_keys(state: Iterable[str]) -> set[str]:
    """Names in SAFE's state dict that belong to the frozen backbone."""
    inside = (name for name in state if name.startswith(ADAPTERS))
    return {name for name in inside if not {"fast", "slow"} & set(name.split("."))}


def check_backbone(about: Mapping[str, Any], adapters: AdapterPair) -> None:
    """Refuses a checkpoint of another backbone.

    Raises:
        MisconfigurationException: naming both.
    """
    if about["fingerprint"] != adapters.about["fingerprint"]:
        raise MisconfigurationException(
            f"the checkpoint is for the backbone {about['name']!r} (weights {about['fingerprint'][:8]}), "
            f"this model has {adapters.about['name']!r} (weights {adapters.about['fingerprint'][:8]}): "
            "give that backbone, with the same weights"
        )


def check_adapter(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuses a checkpoint whose adapters compute something else; dropout may differ, it is for training.

    Raises:
        MisconfigurationException: naming what differs.
    """
    differing = {name for name in {*saved, *own} if saved.get(name) != own.get(name)}
    differing = {name for name in differing if "dropout" not in name}
    if differing:
        theirs, ours = ({name: given.get(name) for name in sorted(differing)} for given in (saved, own))
        raise MisconfigurationException(
            f"peft_config: the checkpoint does not fit this model: its adapters have {theirs}, this model's "
            f"{ours}; leave peft_config out, or give the checkpoint's"
        )


def check_keys(own: set[str], frozen: set[str], saved: set[str]) -> None:
    """Refuses a checkpoint that lacks something other than the backbone.

    Raises:
        MisconfigurationException: naming what is missing or unknown.
    """
    missing, unknown = sorted(own - frozen - saved), sorted(saved - own)
    if missing or unknown:
        raise MisconfigurationException(
            f"the checkpoint does not fit this model: {len(missing)} tensors are missing {missing[:3]}, "
            f"{len(unknown)} are unknown {unknown[:3]}. Was it made with the same peft_config?"
        )
