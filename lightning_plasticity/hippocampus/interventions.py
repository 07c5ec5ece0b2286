"""What an experimenter does to a model: sets its phase, freezes and cuts maps, changes rates in a run."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from lightning_plasticity.hippocampus.annealing import chunks_of
from lightning_plasticity.hippocampus.gate import Mode

if TYPE_CHECKING:
    from lightning_plasticity.hippocampus.module import HippocampalFormation


class Interventions:
    """Methods of the module that change it by the names of its maps and phases."""

    @property
    def mode(self: "HippocampalFormation") -> Mode:  # type: ignore[misc]
        """Mode of both layers, `theta`, `wake`, `sleep`, `shuffled` or a constant sleep fraction."""
        if self.gate.hpc != self.gate.mec:
            raise ValueError(f"hpc is in mode {self.gate.hpc!r}, mec in {self.gate.mec!r}: see gate")
        return self.gate.hpc

    @mode.setter
    def mode(self: "HippocampalFormation", mode: Mode) -> None:  # type: ignore[misc]
        self.gate = self.gate.with_mode(mode)

    def freeze(self: "HippocampalFormation", *names: str) -> "HippocampalFormation":  # type: ignore[misc]
        """Stops the learning of maps, all of them if none is named: weights and inductions stand still."""
        self.set_eta(dict.fromkeys(names or self.settings.maps, 0.0))
        return self

    def unfreeze(self: "HippocampalFormation", *names: str) -> None:  # type: ignore[misc]
        """Lets maps learn again, at the preset's rate; one that the preset freezes at that of the others.

        Raises:
            ValueError: if a map is named that isn't there or that was cut.
        """
        cut = sorted(set(names) & set(self.lesions))
        if cut:
            raise ValueError(f"maps {cut} were cut by lesion() and cannot learn")
        names, fallback = names or self.settings.maps, max(self.settings.eta.values())
        self.set_eta({name: self.settings.eta.get(name, 0.0) or fallback for name in self._known(names)})

    def set_eta(self: "HippocampalFormation", eta: Mapping[str, float]) -> None:  # type: ignore[misc]
        """Changes learning rates per step from now on; those of maps that were cut stay 0."""
        for name in self._known(eta):
            self.eta[name] = 0.0 if name in self.lesions else float(eta[name])
        self._hand_over_eta()

    @torch.no_grad()
    def lesion(self: "HippocampalFormation", *names: str) -> None:  # type: ignore[misc]
        """Cuts maps: their weights are 0 and stay so."""
        for name in self._known(names):
            self.weights[name].zero_()
            self.lesions.append(name)
        self.freeze(*names)

    def _known(self: "HippocampalFormation", names: Any) -> Sequence[str]:  # type: ignore[misc]
        unknown = [name for name in names if name not in self.weights]
        if unknown or not names:
            raise ValueError(f"maps {unknown}: choose from {', '.join(self.settings.maps)}")
        return list(names)

    def _hand_over_eta(self: "HippocampalFormation") -> None:  # type: ignore[misc]
        """Tells the optimizer and its scheduler of changed rates, in a run."""
        if self._trainer is None or not self.trainer.optimizers:
            return
        (rule,) = self.trainer.optimizers
        for group in rule.param_groups:
            group["initial_lr"] = self.eta[group["name"]]
        for config in self.trainer.lr_scheduler_configs:
            scheduler: Any = config.scheduler
            if hasattr(scheduler, "base_lrs"):
                scheduler.base_lrs = [group["initial_lr"] for group in rule.param_groups]
        self._anneal(rule)

    def restart_annealing(  # type: ignore[misc]
        self: "HippocampalFormation", start: float, floor: float, shape: Literal["cosine", "linear"]
    ) -> None:
        """From the next chunk to the end of the run rates fall anew; see `Annealing`."""
        self.annealing.restart(self.global_step, start, floor, shape)
        self.annealing.total = chunks_of(self.trainer)
        self._hand_over_eta()

    def _anneal(self: "HippocampalFormation", rule: Any) -> None:  # type: ignore[misc]
        factor = self.annealing(self.global_step)
        for group in rule.param_groups:
            group["lr"] = group["initial_lr"] * factor
