"""What surrounds SAFE's loss in a training step: reproducible dropout, and what is refused."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def seeded_dropout(net: nn.Module, device: torch.device, *seed: int) -> Iterator[None]:
    """Dropout from a seed of its own: a resumed run draws as one without a stop.

    Args:
        net: may hold dropout; if none is active, nothing is done.
        device: where it runs.
        *seed: numbers that say the run, the batch and the process.
    """
    if not any(isinstance(m, nn.Dropout) and m.p > 0 and m.training for m in net.modules()):
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(hash(seed) % 2**63)
        yield


def check_labels(labels: Tensor, seen: int, session: int) -> None:
    """Refuses labels of another session.

    Args:
        labels: `[B]`.
        seen: classes known.
        session: 1-based, for the message.

    Raises:
        ValueError: naming the label.
    """
    if int(labels.max()) >= seen or int(labels.min()) < 0:
        wrong = int(labels.max()) if int(labels.max()) >= seen else int(labels.min())
        raise ValueError(
            f"session {session} knows the classes 0..{seen - 1}, a batch has the label {wrong}: it belongs "
            "to another session; is the data's order of classes right?"
        )


def check_loss(loss: Tensor, session: int, lr: float, weights: object) -> None:
    """Refuses a loss that is not finite.

    Args:
        loss: 0-d.
        session: 1-based, for the message.
        lr: learning rate, likewise.
        weights: of the losses, likewise.

    Raises:
        ValueError: naming what may be the cause.
    """
    if not bool(loss.isfinite()):
        raise ValueError(
            f"the loss is {float(loss.detach())} in session {session}: features are not finite, or "
            f"the learning rate ({lr}) or a weight ({weights}) is too high"
        )
