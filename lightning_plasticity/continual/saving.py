"""What of SAFE is kept: checkpoints without the backbone, folders in peft's format, a net for serving."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from torch import nn

from lightning_plasticity.continual import checkpoints, folders, sessions
from lightning_plasticity.continual.adapters import AdapterPair
from lightning_plasticity.continual.learners import SlowFast
from lightning_plasticity.continual.report import Record
from lightning_plasticity.continual.session_module import SessionModule


class SavedModule(SessionModule):
    """Sessions of slow and fast learners that go into checkpoints and folders.

    Attributes:
        learners: everything that is learned.
        record: accuracies so far; None before a fit.
        class_order: the data set's label of each column of the logits; None before a fit, or if the data do
            not tell.
    """

    learners: SlowFast
    record: Record | None
    class_order: list[int] | None

    @property
    def adapters(self) -> AdapterPair:
        """The backbone with both adapters."""
        return self.learners.adapters

    @property
    def learned_classes(self) -> int:
        """Number of classes of the sessions that have ended."""
        return int((self.learners.slow_ridge.counts > 0).nonzero().max()) + 1 if self.ended else 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves the backbone out and says which one it is."""
        state = checkpoint["state_dict"]
        frozen = checkpoints.frozen_keys(state)
        checkpoint["state_dict"] = {name: tensor for name, tensor in state.items() if name not in frozen}
        checkpoint[checkpoints.KEY] = {
            "backbone": dict(self.adapters.about),
            "adapter": dict(self.adapters.method),
            "begun": self.begun,
            "ended": self.ended,
            "record": None if self.record is None else self.record.state(),
            "class_order": self.class_order,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks that the backbone and all names are this model's, and takes up the sessions."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint[checkpoints.KEY]
        checkpoints.check_backbone(saved["backbone"], self.adapters)
        checkpoints.check_adapter(saved["adapter"], self.adapters.method)
        frozen = checkpoints.frozen_keys(self.state_dict())
        checkpoints.check_keys(set(self.state_dict()), frozen, set(checkpoint["state_dict"]))
        sessions.check_order(saved.get("class_order"), self.class_order)
        self.class_order = saved.get("class_order")
        self.begun, self.ended = saved["begun"], saved["ended"]
        self.record = None if saved["record"] is None else Record.of(saved["record"])

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Loads a state with or without the backbone, which stays as it is."""
        own = self.state_dict()
        kept = {name: own[name] for name in checkpoints.frozen_keys(own)}
        return super().load_state_dict(kept | dict(state_dict), strict, assign)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes both adapters in peft's format, and heads and statistics in `safe.pt` beside them."""
        folders.save(self, folder)

    @classmethod
    def from_pretrained(cls, backbone: str | nn.Module, folder: str | Path) -> Self:
        """The model that `save_pretrained` wrote, on its backbone.

        Raises:
            ValueError: for another backbone, or a folder that holds no such model.
        """
        return folders.load(cls, backbone, folder)

    def merged(self) -> nn.Module:
        """The slow learner for serving: images to logits `[B, C]`, no peft, frozen.

        Column `c` is the data set's label `class_order[c]`.

        Raises:
            RuntimeError: before the end of the first session.
        """
        if not self.ended:
            raise RuntimeError("nothing is learned yet: the first session has not ended")
        return folders.serving(self.learners, self.learned_classes)
