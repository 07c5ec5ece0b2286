"""What is known of a run: accuracy of each learner on each session after each, and who was listened to."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_plasticity.continual.learners import Answers
from lightning_plasticity.metrics import ContinualAccuracy
from lightning_plasticity.metrics.continual_accuracy import accuracy_matrix

LEARNERS = ("slow", "fast", "aggregate")
_COUNTS = ("correct", "total")


class Record:
    """Counts of right answers of `slow`, `fast` and `aggregate`, and the fast learner's mean weight.

    Args:
        num_sessions: `T`.

    Attributes:
        accuracy: a `ContinualAccuracy` of each learner, whose counts are those of all processes.
        weight: `[T, T]`, sum of the fast learner's weights after session (row) on the samples of session
            (column).
    """

    def __init__(self, num_sessions: int) -> None:
        self.accuracy = {name: ContinualAccuracy(num_sessions) for name in LEARNERS}
        for metric in self.accuracy.values():
            metric.sync_on_compute = False  # `gather` does, so that checkpoints hold all processes' counts
        self.weight = torch.zeros(num_sessions, num_sessions, dtype=torch.float64)

    @property
    def num_sessions(self) -> int:
        """`T`."""
        return len(self.weight)

    @property
    def evaluated(self) -> int:
        """Number of sessions after which something was counted."""
        return int((self.accuracy["slow"].total.sum(1) > 0).sum())

    def add(self, answers: Answers, labels: Tensor, part: int, session: int) -> None:
        """Counts a batch of session `part`, answered after session `session`."""
        for name, metric in self.accuracy.items():
            metric.update(getattr(answers, name).cpu(), labels.cpu(), part, session)
        self.weight[session, part] += answers.weight.sum().double().cpu()

    def gather(self, sum_: Callable[[Tensor], Tensor], session: int, device: torch.device) -> None:
        """Sums the counts after a session over processes, on their device."""
        rows = [getattr(metric, count)[session] for metric in self.accuracy.values() for count in _COUNTS]
        for row in rows:
            row.copy_(sum_(row.to(device)))
        self.weight[session] = sum_(self.weight[session].float().to(device)).double().cpu()

    def matrix(self, learner: str = "aggregate") -> Tensor:
        """`R [T, T]` of a learner, NaN where nothing was counted."""
        metric = self.accuracy[learner]
        return accuracy_matrix(metric.correct, metric.total)  # torchmetrics squeezes that of one session

    def fast_weight(self) -> Tensor:
        """Mean weight of the fast learner, `[T, T]`, NaN where nothing was counted."""
        return self.weight / self.accuracy["slow"].total

    def summary(self, learner: str = "aggregate") -> dict[str, float]:
        """All numbers of `ContinualAccuracy` but the matrix, and the last row's `old` and `new` share."""
        values = self.accuracy[learner].compute()
        numbers = {name: float(value) for name, value in values.items() if name != "matrix"}
        metric, last = self.accuracy[learner], self.evaluated - 1
        for name, columns in (("old", slice(0, last)), ("new", slice(last, last + 1))):
            right, total = (getattr(metric, count)[last, columns].sum() for count in _COUNTS)
            numbers[name] = float(right / total)
        return numbers

    def numbers(self) -> dict[str, float]:
        """What is logged at the end of a session."""
        logged = {}
        for learner in LEARNERS:
            summary = self.summary(learner)
            logged[f"{learner}_accuracy"] = summary["final_micro"]
            for name in ("average_incremental", "forgetting"):
                if summary[name] == summary[name]:
                    logged[f"{learner}_{name}"] = summary[name]
        return logged

    def line(self, session: int) -> str:
        """One line on a session."""
        accuracies = (f"{name} {100 * self.summary(name)['final_micro']:.1f}" for name in LEARNERS)
        return f"session {session + 1}/{self.num_sessions}, accuracy on all classes so far (%): " + ", ".join(
            accuracies
        )

    def table(self) -> str:
        """The aggregate's matrix and all summaries as text, in percent."""
        head = "".join(f"{f'session {i + 1}':>11}" for i in range(self.num_sessions))
        lines = ["accuracy of the aggregate (%) on the classes of", f"{'':>16}{head}"]
        for after, row in enumerate(self.matrix().tolist()[: self.evaluated]):
            cells = "".join(f"{100 * value:11.1f}" if value == value else f"{'':>11}" for value in row)
            lines.append(f"after session {after + 1:<2}{cells}")
        names = ("final_micro", "final_macro", "average_incremental", "forgetting", "backward_transfer")
        titles = ("final", "final, macro", "incremental", "forgetting", "transfer")
        lines += ["", f"{'':>16}" + "".join(f"{title:>14}" for title in (*titles, "old", "new"))]
        for learner in LEARNERS:
            summary = self.summary(learner)
            cells = "".join(f"{100 * summary[name]:14.1f}" for name in (*names, "old", "new"))
            lines.append(f"{learner:<16}{cells}")
        return "\n".join(lines)

    def rows(self) -> list[dict[str, Any]]:
        """Accuracy of every learner on the classes of each session, after each session, as rows."""
        found = {name: self.matrix(name) for name in LEARNERS}
        return [
            {"after_session": after + 1, "session": session + 1}
            | {name: float(matrix[after, session]) for name, matrix in found.items()}
            for after in range(self.evaluated)
            for session in range(after + 1)
        ]

    def state(self) -> dict[str, Any]:
        """All counts, as tensors."""
        counts = {
            name: {count: getattr(metric, count).clone() for count in _COUNTS}
            for name, metric in self.accuracy.items()
        }
        return {"counts": counts, "weight": self.weight.clone()}

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Record":
        """A record of its state."""
        record = cls(len(state["weight"]))
        record.weight.copy_(state["weight"])
        for name, counts in state["counts"].items():
            metric = record.accuracy[name]
            for count, value in counts.items():
                getattr(metric, count).copy_(value)
            metric._update_count = int(bool(metric.total.any()))  # else compute() warns that nothing came
        return record
