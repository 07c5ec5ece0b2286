"""A new environment for a trained model: new place fields, the ring kept, its maps to HPC learned anew."""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from lightning_plasticity.data.splits import generator_for
from lightning_plasticity.hippocampus.environment import PlaceFields, field_centres
from lightning_plasticity.hippocampus.module import HippocampalFormation

RECURRENT = ("mec_recurrent", "mec_right", "mec_left")


@dataclass(frozen=True)
class Switch:
    """What happens to a model when its environment changes.

    Attributes:
        seed: of the new fields.
        basal: `keep` W_gB, or `uniform`: 1 / n_p everywhere, bias 0.
        reset_rates: whether rates begin anew from 0; noise goes on.
        eta: of the two maps that learn on, W_pA and W_gB.
    """

    seed: int = 0
    basal: Literal["keep", "uniform"] = "keep"
    reset_rates: bool = True
    eta: float = 0.01

    def __post_init__(self) -> None:
        if self.basal not in ("keep", "uniform"):
            raise ValueError(f"basal={self.basal!r} must be keep or uniform")
        if not self.eta > 0:
            raise ValueError(f"eta={self.eta} must be positive, or nothing is learned")


@torch.no_grad()
def remap(model: HippocampalFormation, switch: Switch) -> None:
    """Shuffles and jitters the place fields, freezes the ring, and frees W_pA and W_gB; in place.

    Inductions of a running optimizer are cleared, as in the authors' code for the maps that are frozen.

    Args:
        model: on a track.
        switch: what happens.

    Raises:
        ValueError: if the model has no track.
    """
    if not isinstance(model.environment, PlaceFields):
        raise ValueError(f"remapping needs place fields, task={model.settings.task!r} has none")
    seeds = [switch.seed * 1009 + own for own in model.environment_seeds]
    centres = [field_centres(model.settings, generator_for(own, stream=10), shuffle=True) for own in seeds]
    model.environment.centres = torch.stack(centres).to(model.environment.centres)
    if switch.reset_rates:
        noise = model.state.noise
        model.state = replace(model.state.map(torch.zeros_like), noise=noise)
    if switch.basal == "uniform":
        model.weights["mec_basal"].zero_()
        model.weights["mec_basal"][:, :, : model.settings.hpc] = 1 / model.settings.hpc
    if model._trainer is not None and model.trainer.optimizers:
        for entry in model.trainer.optimizers[0].state.values():
            entry["induction"].zero_()
    model.set_eta({"hpc_apical": switch.eta, "mec_basal": switch.eta} | dict.fromkeys(RECURRENT, 0.0))
