"""A progress bar whose steps are rounds of a federation."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm


class RoundProgressBar(TQDMProgressBar):
    """One bar over all rounds, with what is known after each."""

    def init_validation_tqdm(self) -> Any:
        """Leaves out the bar of the few cues between two rounds."""
        if self.trainer.state.fn == "fit":
            return Tqdm(disable=True)
        return super().init_validation_tqdm()

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """All but the version number, which says nothing of the federation."""
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name != "v_num"}

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Says which round it is."""
        bar = self.train_progress_bar
        if bar.total is None:
            bar.reset(total=trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None)
        bar.set_description("Round")

    def on_train_batch_end(self, *_: Any) -> None:
        """A batch is one client's part of a round: too little to show."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows what the round has brought."""
        bar = self.train_progress_bar
        if not bar.disable:
            bar.n = trainer.current_epoch + 1
            bar.set_postfix(self.get_metrics(trainer, pl_module))
