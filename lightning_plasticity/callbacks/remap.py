"""Remap: takes a hippocampal model to a new environment in the middle of a run."""

from dataclasses import replace
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_plasticity.callbacks.path_integration import check_on_track
from lightning_plasticity.callbacks.support import log_now


class Remap(Callback):
    """After some simulated minutes place fields are shuffled; the ring is frozen, W_pA and W_gB learn anew.

    The authors (George et al., NeurIPS 2023) reset rates, keep W_gB and go on with theta; that re-forms a map
    in few seeds. Ours (preset `remap_anchored`) starts from a uniform W_gB and keeps MEC asleep for a minute
    while HPC follows theta: the ring moves with the animal by itself, and the new map is laid down along it.

    The transfer is measured by the error a second into the dark: before, just after (the decoder fitted anew,
    awake, without learning) and at the end of training; logged as `hippocampus/transfer_before`,
    `..._just_after` and, with the last chunk of an epoch or a run, `..._after`.

    Args:
        at_minutes: simulated minutes before the switch; it happens at the first chunk that begins then.
        anchor_seconds: MEC stays asleep so long afterwards; None: as the model's preset has it.
        basal: `keep` W_gB or start from a `uniform` one; None: uniform if there is an anchor.
        reset_rates: whether rates begin anew from 0; None: if there is no anchor.
        eta: learning rate of W_pA and W_gB afterwards.
        anneal: whether it falls linearly to 2 % after the anchor; None: if there is an anchor.
        speed_mean: m/s of the walk afterwards; None: as the model's preset has it.
        tests: walks of each measurement.
        seed: of the new fields and the tests.

    Attributes:
        errors: `before`, `just_after`, `after`: mean error over tests a second into the dark `[M]`, metres.

    Raises:
        MisconfigurationException: if an argument is out of range, or, at the start of a fit, if the module is
            no `HippocampalFormation` on a track, the data cannot change their mean speed, or the run ends
            before the switch.

    Example:
        >>> callback = Remap(at_minutes=60, anchor_seconds=60.0)
    """

    def __init__(
        self,
        at_minutes: float,
        anchor_seconds: float | None = None,
        basal: Literal["keep", "uniform"] | None = None,
        reset_rates: bool | None = None,
        eta: float = 0.01,
        anneal: bool | None = None,
        speed_mean: float | None = None,
        tests: int = 50,
        seed: int = 0,
    ) -> None:
        if not at_minutes > 0:
            raise MisconfigurationException(f"at_minutes={at_minutes} must be positive")
        if anchor_seconds is not None and not anchor_seconds >= 0:
            raise MisconfigurationException(f"anchor_seconds={anchor_seconds} must not be negative")
        if basal not in (None, "keep", "uniform"):
            raise MisconfigurationException(f"basal={basal!r} must be keep, uniform or None")
        if not eta > 0 or tests < 1:
            raise MisconfigurationException(f"eta={eta} and tests={tests} must be positive")
        self.at_minutes, self.anchor_seconds, self.basal = at_minutes, anchor_seconds, basal
        self.reset_rates, self.eta, self.anneal, self.speed_mean = reset_rates, eta, anneal, speed_mean
        self.tests, self.seed = tests, seed
        self.stage: Literal["before", "anchor", "after"] = "before"
        self.errors: dict[str, Tensor] = {}
        self._measured_at = -1  # the step that `after` is of

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Refuses what could not be done when the time comes; takes what is not given from the preset."""
        check_on_track(pl_module, type(self).__name__)
        settings = pl_module.settings
        if self.anchor_seconds is None:
            self.anchor_seconds = settings.anchor_seconds
        anchored = self.anchor_seconds > 0
        self.basal = self.basal or ("uniform" if anchored else "keep")
        self.reset_rates = not anchored if self.reset_rates is None else self.reset_rates
        self.anneal = anchored if self.anneal is None else self.anneal
        self.speed_mean = settings.speed_mean_after if self.speed_mean is None else self.speed_mean
        if stage == "fit" and self.speed_mean and not hasattr(_data(trainer), "set_speed_mean"):
            raise MisconfigurationException(
                f"speed_mean={self.speed_mean} needs data with set_speed_mean: give the Trainer a "
                "TrackData, or speed_mean=0"
            )

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Refuses a run that ends before the switch; until then rates are annealed."""
        chunk = _chunk_minutes(trainer, pl_module)
        if self.stage != "before" or chunk is None:
            return
        ends = trainer.estimated_stepping_batches * chunk  # below 0 where nobody knows
        if 0 <= ends <= self.at_minutes + 1e-6:
            raise MisconfigurationException(
                f"at_minutes={self.at_minutes:g} is never reached: the run ends after {ends:g} "
                "simulated minutes"
            )
        pl_module.annealing.total = min(pl_module.annealing.total, self.at_minutes / chunk)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Switches environment, or ends the anchor, if it is time."""
        minutes = pl_module.simulated_minutes + 1e-6
        if self.stage == "before" and minutes >= self.at_minutes:
            self._switch(trainer, pl_module)
        if self.stage == "anchor" and minutes >= self.at_minutes + (self.anchor_seconds or 0.0) / 60:
            pl_module.gate = replace(pl_module.gate, mec=pl_module.gate.hpc)
            self.stage = "after"
            start, floor = (0.0, 0.02) if self.anneal else (1.0, 1.0)
            pl_module.restart_annealing(start, floor, "linear")

    def _switch(self, trainer: Trainer, module: Any) -> None:
        from lightning_plasticity.hippocampus.analysis import fit_decoder
        from lightning_plasticity.hippocampus.transfer import Switch, remap

        self.errors["before"] = self._error(module)
        remap(module, Switch(self.seed, self.basal or "keep", bool(self.reset_rates), self.eta))
        self.errors["just_after"] = self._error(module, fit_decoder(module, seed=self.seed, mode="wake"))
        if self.speed_mean:
            _data(trainer).set_speed_mean(self.speed_mean)
        module.restart_annealing(1.0, 1.0, "linear")
        if self.anchor_seconds:
            module.gate = replace(module.gate, mec="sleep")
        self.stage = "anchor"
        rank_zero_info(f"Remap: new place fields after {module.simulated_minutes:g} minutes")

    def _error(self, module: Any, decoder: Any = None) -> Tensor:
        from lightning_plasticity.hippocampus.analysis import errors_at, walk_into_the_dark

        gate, module.gate = module.gate, module.gate.with_mode("theta")
        dark = walk_into_the_dark(module, 1.0, self.tests, self.seed, spin_up=1.0, decoder=decoder)
        module.gate = gate
        return errors_at(dark.error, module.settings.dt, (1,))[..., 0].cpu()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        """Measures the transfer after the last chunk, and logs."""
        if self.stage == "before":
            return
        if trainer.is_last_batch or 0 < trainer.max_steps <= trainer.global_step:
            self._measure_after(trainer, pl_module)
        for name, value in self.errors.items():
            pl_module.log(f"hippocampus/transfer_{name}", value.mean(), sync_dist=trainer.world_size > 1)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Measures it now where something else has ended the run, such as a time limit."""
        if self.stage != "before" and self._measured_at != trainer.global_step:
            self._measure_after(trainer, pl_module)
            mean: Any = trainer.strategy.reduce(self.errors["after"].mean(), reduce_op="mean")
            log_now(trainer, {"hippocampus/transfer_after": float(mean)})

    def _measure_after(self, trainer: Trainer, module: Any) -> None:
        self.errors["after"], self._measured_at = self._error(module), trainer.global_step

    def state_dict(self) -> dict[str, Any]:
        """Where the transfer is."""
        return {"stage": self.stage, "errors": dict(self.errors)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.stage, self.errors = state_dict["stage"], dict(state_dict["errors"])


def _data(trainer: Trainer) -> Any:
    return trainer.datamodule  # type: ignore[attr-defined]


def _chunk_minutes(trainer: Trainer, module: Any) -> float | None:
    """Simulated minutes of a training step, where the data tell."""
    steps = getattr(_data(trainer), "steps", None)
    return None if steps is None else steps * module.settings.dt / 60
