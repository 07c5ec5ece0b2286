"""What a model costs: parameters, FLOPs and measured latency, before and after it was made smaller."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
from torch import nn

from lightning_plasticity.sparsity.export.constants import Inputs, as_inputs
from lightning_plasticity.sparsity.flops import count_flops


@dataclass(frozen=True)
class Cost:
    """Cost of one model.

    Attributes:
        parameters: Number of parameters that are stored, zeros included.
        flops: Forward FLOPs of one sample with every stored weight counted (2 x MACs, convolution and linear
            only).
        latency: Median seconds of one forward pass of the whole batch.
        zero_filters: Filters of convolution and linear layers that are all zero but still computed.
    """

    parameters: int
    flops: float
    latency: float
    zero_filters: int


@dataclass(frozen=True)
class ShrinkReport:
    """Costs before and after, measured in turns in the same process; ``print`` shows a table.

    Attributes:
        before: The model as it was.
        after: The smaller model.
        batch_size: Samples in the batch that was timed.
        threads: CPU threads that torch was allowed.
        device: Where it was timed.
    """

    before: Cost
    after: Cost
    batch_size: int
    threads: int
    device: str

    def __str__(self) -> str:
        """Lay the costs out as a table."""
        where = f"{self.device}, {self.threads} threads" if self.device == "cpu" else self.device
        rows = [
            ("", "before", "after", "ratio"),
            _row("parameters", self.before.parameters, self.after.parameters, "{:,.0f}"),
            _row("zero filters", self.before.zero_filters, self.after.zero_filters, "{:,.0f}"),
            _row("MFLOPs per sample", self.before.flops / 1e6, self.after.flops / 1e6, "{:,.2f}"),
            _row("latency, ms", self.before.latency * 1e3, self.after.latency * 1e3, "{:,.3f}"),
        ]
        return format_table(rows) + f"\n(batch of {self.batch_size}, {where})"


def _row(title: str, before: float, after: float, form: str) -> tuple[str, ...]:
    ratio = f"{after / before:.3f}" if before else "-"
    return title, form.format(before), form.format(after), ratio


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of text in columns: the first to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def measure_latency(models: Sequence[nn.Module], example_inputs: Inputs, repeats: int = 30) -> list[float]:
    """Time models in turns, so that a busy moment of the machine hits all of them.

    Args:
        models: Models on one device; timed as they stand, in their own mode.
        example_inputs: A batch, positional inputs.
        repeats: Timed passes per model, after 3 that are not timed.

    Returns:
        Median seconds of a forward pass, per model.

    Raises:
        ValueError: If ``repeats`` is not positive.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats} must be at least 1")
    inputs = as_inputs(example_inputs)
    seconds: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for turn in range(-3, repeats):
            for model, times in zip(models, seconds, strict=True):
                _wait(inputs[0].device)
                start = perf_counter()
                model(*inputs)
                _wait(inputs[0].device)
                if turn >= 0:
                    times.append(perf_counter() - start)
    return [median(times) for times in seconds]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare(before: nn.Module, after: nn.Module, example_inputs: Inputs, repeats: int = 30) -> ShrinkReport:
    """Measure two models side by side, in evaluation mode.

    Args:
        before: The model as it was; left untouched.
        after: The smaller model; left untouched.
        example_inputs: The batch to time, positional inputs.
        repeats: Timed passes per model.

    Returns:
        Parameters, FLOPs, zero filters and latency of both.

    Example:
        >>> big, small = nn.Linear(8, 8), nn.Linear(4, 4)
        >>> compare(big, big, torch.zeros(2, 8), repeats=1).after.parameters
        72
    """
    inputs = as_inputs(example_inputs)
    models = [deepcopy(model).eval() for model in (before, after)]
    latencies = measure_latency(models, inputs, repeats)
    costs = [
        Cost(
            parameters=sum(p.numel() for p in model.parameters()),
            flops=count_flops(model, inputs).dense,
            latency=latency,
            zero_filters=count_zero_filters(model),
        )
        for model, latency in zip(models, latencies, strict=True)
    ]
    threads, device = torch.get_num_threads(), inputs[0].device.type
    return ShrinkReport(costs[0], costs[1], len(inputs[0]), threads, device)


def count_zero_filters(model: nn.Module) -> int:
    """Count the output channels of convolution and linear layers whose weights are all zero."""
    layers = (m for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear))
    return sum(int((layer.weight == 0).flatten(1).all(1).sum()) for layer in layers)
