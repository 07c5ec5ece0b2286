"""What a checkpoint holds beside weights and optimizer: every process's stream, to go on bit for bit."""

from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_plasticity.data.streams import gather_objects
from lightning_plasticity.hippocampus.dynamics import State
from lightning_plasticity.hippocampus.gate import Gate

if TYPE_CHECKING:
    from lightning_plasticity.hippocampus.module import HippocampalFormation

KEY = "hippocampus"


class Checkpoints:
    """Hooks of the module that save and restore its stream; Lightning itself writes rank 0's alone."""

    _resumed: dict[str, Any] | None = None

    def on_save_checkpoint(self: "HippocampalFormation", checkpoint: dict[str, Any]) -> None:  # type: ignore[misc]
        """Adds the streams of all processes, and their weights and inductions."""
        checkpoint[KEY] = {
            "ranks": gather_objects(_stream(self)),
            "eta": dict(self.eta),
            "gate": vars(self.gate).copy(),
            "lesions": list(self.lesions),
            "recorder": self.recorder.state_dict(),
        }

    def on_load_checkpoint(self: "HippocampalFormation", checkpoint: dict[str, Any]) -> None:  # type: ignore[misc]
        """Takes back what all processes share, and keeps the rest until the run begins."""
        saved = checkpoint[KEY]
        self.eta, self.gate, self.lesions = dict(saved["eta"]), Gate(**saved["gate"]), list(saved["lesions"])
        self.recorder.load_state_dict(saved["recorder"])
        if (
            self._trainer is None
        ):  # load_from_checkpoint: a model to look at, or to go on from with fresh rules
            _restore(self, saved["ranks"][0])
            return
        if self.trainer.world_size != len(saved["ranks"]):
            raise MisconfigurationException(
                f"the checkpoint is of {len(saved['ranks'])} processes, this run has "
                f"{self.trainer.world_size}: resume with as many"
            )
        self._resumed = saved["ranks"][self.trainer.global_rank]
        _restore(self, self._resumed)

    def on_train_start(self: "HippocampalFormation") -> None:  # type: ignore[misc]
        """Gives each process its own weights and inductions back, after DDP and Lightning spread rank 0's."""
        if self._resumed is None:
            return
        (rule,) = self.trainer.optimizers
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(self._resumed["weights"][name])
                rule.state[weight]["induction"].copy_(self._resumed["induction"][name])
        self._resumed = None


def _stream(module: "HippocampalFormation") -> dict[str, Any]:
    rules = module.trainer.optimizers
    return {
        "seeds": list(module.seeds),
        "environment_seeds": list(module.environment_seeds),
        "state": module.state.tensors(),
        "step": module.state.step,
        "error": module.error,
        "environment": module.environment.tensors(),
        "generators": [generator.get_state() for generator in module._generators],
        "weights": {name: weight.detach() for name, weight in module.weights.items()},
        "induction": {name: rules[0].induction(name) for name in module.weights} if rules else {},  # type: ignore[attr-defined]
    }


def _restore(module: "HippocampalFormation", saved: dict[str, Any]) -> None:
    for name, tensor in module.state.tensors().items():
        if tensor.shape != saved["state"][name].shape:
            raise MisconfigurationException(
                f"the checkpoint's {name} has shape {tuple(saved['state'][name].shape)}, this model's "
                f"{tuple(tensor.shape)}: give the model the same preset, models={module.models} and agents"
            )
    like = module.state.p
    module.seeds, module.environment_seeds = list(saved["seeds"]), list(saved["environment_seeds"])
    module.state = State(
        **{name: value.to(like) for name, value in saved["state"].items()}, step=saved["step"]
    )
    module.error = saved["error"].to(like)
    environment = {name: value.to(like) for name, value in saved["environment"].items()}
    module.environment = module.environment.with_tensors(environment)
    for generator, value in zip(module._generators, saved["generators"], strict=True):
        generator.set_state(value.cpu())
