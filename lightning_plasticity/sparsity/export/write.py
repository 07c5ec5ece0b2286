"""Models that leave training smaller and faster: to files that other programs read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lightning_plasticity.sparsity.export.baking import bake
from lightning_plasticity.sparsity.export.constants import Inputs, as_inputs
from lightning_plasticity.sparsity.export.cost import ShrinkReport, compare, format_table
from lightning_plasticity.sparsity.export.surgery import shrink

Format = Literal["onnx", "pt2"]


@dataclass(frozen=True)
class ExportReport:
    """What was written and what it saves; ``print`` shows both as tables.

    Attributes:
        costs: Parameters, FLOPs and latency of the masked and of the exported model.
        files: Path to size in bytes of every file written.
        bytes_before: Size of the masked model as a safetensors file (it isn't written).
    """

    costs: ShrinkReport
    files: dict[Path, int]
    bytes_before: int

    def __str__(self) -> str:
        """Lay out the costs, and under them the files."""
        rows = [("file", "KiB", "ratio"), ("(masked model)", f"{self.bytes_before / 1024:,.1f}", "1.000")]
        for path, size in self.files.items():
            rows.append((str(path), f"{size / 1024:,.1f}", f"{size / self.bytes_before:.3f}"))
        return f"{self.costs}\n\n{format_table(rows)}"


def export_model(
    model: nn.Module,
    path: str | Path,
    example_inputs: Inputs,
    masks: Mapping[str, Tensor] | None = None,
    *,
    format: Format = "onnx",
    fuse_norms: bool = True,
    exclude: Sequence[str] = (),
    repeats: int = 30,
) -> ExportReport:
    """Shrink a model; write it as ``model.safetensors`` and as a graph that needs no Python class of yours.

    The graph takes any batch size; the other sizes are those of ``example_inputs``. The safetensors go back
    into a fresh model with :func:`load_shrunk`.

    Args:
        model: The trained model; left untouched.
        path: Folder to write into; made if need be, files of the same names are replaced.
        example_inputs: The batch that is traced and timed, positional inputs.
        masks: Masks of :class:`SparseTraining`. Without, zero filters are read from the weights.
        format: ``"onnx"`` for ``model.onnx``, ``"pt2"`` for ``model.pt2`` (:func:`torch.export.load`).
        fuse_norms: As for :func:`shrink`.
        exclude: As for :func:`shrink`.
        repeats: Timed passes per model.

    Returns:
        The files with their sizes, and parameters, FLOPs and latency before and after.

    Raises:
        ValueError: If ``format`` is unknown, or as :func:`shrink` raises.
        ModuleNotFoundError: If the extra ``export`` is not installed.
    """
    if format not in get_args(Format):
        raise ValueError(f"format='{format}' must be one of {', '.join(get_args(Format))}")
    save = _safetensors()
    inputs = as_inputs(example_inputs)
    masked = bake(model, masks or {}).eval()
    small = shrink(masked, inputs, fuse_norms=fuse_norms, exclude=exclude)
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tensors, graph = folder / "model.safetensors", folder / f"model.{format}"
    tensors.write_bytes(save(_plain_tensors(small)))
    _write_graph(small, graph, inputs, format)
    return ExportReport(
        costs=compare(masked, small, inputs, repeats),
        files={file: file.stat().st_size for file in (tensors, graph)},
        bytes_before=len(save(_plain_tensors(masked))),
    )


def _safetensors() -> Callable[[dict[str, Tensor]], bytes]:
    try:
        from safetensors.torch import save
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("exporting needs pip install 'lightning-plasticity[export]'") from error
    return save


def _plain_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Copy the state, so that tied weights don't share memory (safetensors refuses that)."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}


def _write_graph(model: nn.Module, file: Path, inputs: tuple[Tensor, ...], format: Format) -> None:
    if len(inputs[0]) == 1:  # torch.export would take a batch of 1 as a constant
        inputs = tuple(torch.cat([x, x]) for x in inputs)
    with torch.no_grad():
        model(*inputs)  # border maps of this image size become constants of the graph
    shapes = tuple({0: torch.export.Dim("batch")} for _ in inputs)
    if format == "pt2":
        torch.export.save(torch.export.export(model, inputs, dynamic_shapes=shapes), file)
        return
    program = torch.onnx.export(model, inputs, dynamo=True, dynamic_shapes=shapes, verbose=False)
    assert program is not None
    program.save(file)
