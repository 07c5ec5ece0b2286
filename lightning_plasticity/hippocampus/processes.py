"""What a run needs of its Trainer, and how processes share what they learn."""

import warnings
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_plasticity.hippocampus.plasticity import LocalPlasticity
from lightning_plasticity.strategies import check_unsharded

if TYPE_CHECKING:
    from lightning_plasticity.hippocampus.module import HippocampalFormation

PRECISIONS = ("32-true", "64-true")


class Processes:
    """Hooks of the module that refuse what would go wrong, and average over processes."""

    def setup(self: "HippocampalFormation", stage: str) -> None:  # type: ignore[misc]
        """Refuses what would silently change the arithmetic or the sums over processes."""
        # Checkpoints shall hold what was learned, which Lightning takes for a mistake.
        warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
        dtype = self.state.p.dtype
        if self.trainer.precision not in PRECISIONS or dtype not in (torch.float32, torch.float64):
            raise MisconfigurationException(
                f"precision={self.trainer.precision!r} with weights of {dtype} would lose eta * PI, "
                f"which is far smaller than W: choose one of {', '.join(PRECISIONS)}"
            )
        check_unsharded(self.trainer)
        if self.trainer.world_size > 1 and self.sync_every == "step" and self.engine == "native":
            raise MisconfigurationException(
                "sync_every='step' needs engine='eager' or 'auto': the kernel runs a whole chunk"
            )

    def on_fit_start(self: "HippocampalFormation") -> None:  # type: ignore[misc]
        """Gives each process a stream of its own, and weights too if processes do not share a model."""
        self._check_data(self.trainer.datamodule)  # type: ignore[attr-defined]
        if self.trainer.world_size == 1 or self._resumed is not None:
            return
        step, rank = self.state.step, self.trainer.global_rank
        if self.sync == "none" and step:
            raise MisconfigurationException(
                "sync='none' draws each process's models as a run begins, these have run already: "
                "go on with ckpt_path, or in one process"
            )
        if self.seeds == self._seeds_of(rank):
            return
        shared = {name: weight.detach().clone() for name, weight in self.weights.items()}
        environment, seeds, error = self.environment, self.environment_seeds, self.error
        self._draw(rank)
        self.state.step, self.error = step, error
        if self.sync != "none":
            self.environment, self.environment_seeds = environment, seeds
            with torch.no_grad():
                for name, weight in shared.items():
                    self.weights[name].copy_(weight)

    def _check_data(self: "HippocampalFormation", data: Any) -> None:  # type: ignore[misc]
        task = self.settings.task
        fitting, own_mark, other_mark = {
            "track": ("TrackData", "circumference", "latents"),
            "latents": ("LatentData", "latents", "circumference"),
        }[task]
        if hasattr(data, other_mark) and not hasattr(data, own_mark):
            raise MisconfigurationException(
                f"data={type(data).__name__} is not for task={task!r}: give {fitting}, or another preset"
            )
        mine = {"models": self.models, "agents": self.agents}
        for name in ("dt", "circumference", "latents"):
            mine[name] = getattr(self.settings, name)
        for name, own in mine.items():
            value = getattr(data, name, own)
            if value != own:
                raise MisconfigurationException(
                    f"the data have {name}={value}, the model {name}={own}: give both the same"
                )

    def _share(self: "HippocampalFormation", rule: LocalPlasticity) -> None:  # type: ignore[misc]
        """Averages what processes have learned in a chunk, so that all go on from the same."""
        for name, weight in self.weights.items():
            if self.eta[name]:
                weight.data.copy_(self._mean(weight.data))
                rule.induction(name).copy_(self._mean(rule.induction(name)))

    def _mean(self: "HippocampalFormation", tensor: Tensor) -> Tensor:  # type: ignore[misc]
        mean: Any = self.trainer.strategy.reduce(tensor.clone(), reduce_op="mean")
        return mean  # type: ignore[no-any-return]
