"""PathIntegrationTest: how far a hippocampal model gets in the dark, tested while it trains."""

from typing import TYPE_CHECKING, Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TIMES = (1, 2, 5, 10, 20)


class PathIntegrationTest(Callback):
    """Turns off the light now and then, on a copy of the state: the run goes on as if it had not happened.

    A decoder is fitted on ten simulated minutes in the light, then animals walk in the dark, without learning
    and without noise unless it is wanted. Logs `hippocampus/dark_error_1s` (2s, 5s, 10s, 20s) in metres,
    `hippocampus/live_cells` and `hippocampus/ring_score`, each the mean over models.

    Args:
        every_n_chunks: training steps between tests; another one follows the last step of an epoch.
        seconds: in the dark.
        tests: walks.
        noise: whether dendrites are noisy in the tests.
        seed: of the walks; the same in every test.

    Attributes:
        history: simulated minutes of each test, and the mean error over tests at each step in the dark `[M,
            T]`.

    Raises:
        MisconfigurationException: if an argument is out of range, or, at the start of a fit, if the module is
            no `HippocampalFormation` on a track.

    Example:
        >>> callback = PathIntegrationTest(every_n_chunks=60, seconds=10.0)
    """

    def __init__(
        self,
        every_n_chunks: int = 60,
        seconds: float = 20.0,
        tests: int = 20,
        noise: bool = False,
        seed: int = 0,
    ) -> None:
        for name, number in {"every_n_chunks": every_n_chunks, "tests": tests}.items():
            if number < 1:
                raise MisconfigurationException(f"{name}={number} must be at least 1")
        if not seconds >= 1:
            raise MisconfigurationException(f"seconds={seconds} must be at least 1")
        self.every_n_chunks, self.seconds, self.tests = every_n_chunks, seconds, tests
        self.noise, self.seed = noise, seed
        self.history: list[tuple[float, Tensor]] = []
        self._dt, self._circumference = 0.025, 1.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a module that cannot be tested."""
        check_on_track(pl_module, type(self).__name__)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        """Tests if it is time."""
        if trainer.global_step % self.every_n_chunks and not trainer.is_last_batch:
            return
        from lightning_plasticity.hippocampus.analysis import (
            dark_tracking_error,
            errors_at,
            live_cells,
            sorted_ring,
        )
        from lightning_plasticity.metrics.ring_score import RingScore

        self._dt, self._circumference = pl_module.settings.dt, pl_module.settings.circumference
        error = dark_tracking_error(pl_module, self.seconds, self.tests, self.seed, self.noise)
        error = error if error.ndim == 3 else error.unsqueeze(0)
        self.history.append((pl_module.simulated_minutes, error.mean(1).cpu()))
        times = [time for time in TIMES if time <= self.seconds]
        for time, value in zip(times, errors_at(error, self._dt, tuple(times)).mean(0), strict=True):
            self._log(pl_module, f"dark_error_{time}s", value)
        ring = RingScore()
        for index in range(pl_module.models):
            ring.update(*(part.cpu() for part in sorted_ring(pl_module, index)))
        self._log(pl_module, "ring_score", ring.compute()["score"])
        self._log(pl_module, "live_cells", live_cells(pl_module).float().mean())

    def _log(self, module: LightningModule, name: str, value: Tensor) -> None:
        module.log(f"hippocampus/{name}", value, sync_dist=module.trainer.world_size > 1)

    def state_dict(self) -> dict[str, Any]:
        """The history."""
        return {"history": list(self.history)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.history = [(minutes, error) for minutes, error in state_dict["history"]]

    def tables(self) -> dict[str, list[dict[str, float]]]:
        """Error in metres by time in the dark, mean over models, at each test of the run."""
        from lightning_plasticity.hippocampus.analysis import errors_at

        times = tuple(time for time in TIMES if time <= self.seconds)
        names = ["minutes", *(f"after_{time}_s" for time in times)]
        numbers = [[minutes, *errors_at(error, self._dt, times).tolist()] for minutes, error in self.history]
        return {"dark_error": [dict(zip(names, row, strict=True)) for row in numbers]}

    def figures(self) -> "dict[str, Figure]":
        """Error by time in the dark, at each test of the run."""
        if not self.history:
            return {}
        from lightning_plasticity.hippocampus.figures import dark_error_figure

        return {"dark_error": dark_error_figure(self.history, self._dt, self._circumference)}


def check_on_track(module: Any, who: str) -> None:
    """Refuses a module that is no `HippocampalFormation` on a track.

    Raises:
        MisconfigurationException: names the module.
    """
    task = getattr(getattr(module, "settings", None), "task", None)
    if task != "track" or not hasattr(module, "rate_map"):
        raise MisconfigurationException(
            f"{who} needs a HippocampalFormation on a track, got {type(module).__name__}"
            + (f" of task {task!r}" if task else "")
        )
