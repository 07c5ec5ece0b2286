"""Write the smaller model of a sparse run.

python recipes/sparse_training.py export --ckpt_path=runs/sparse_training/version_0/checkpoints/last.ckpt
"""

from pathlib import Path

import torch

from lightning_plasticity.data import ImageData
from lightning_plasticity.mistakes import check_checkpoint
from lightning_plasticity.models import ImageClassifier
from lightning_plasticity.sparsity import export_model, masks_in_checkpoint


def export(
    ckpt_path: str,
    output: str = "runs/sparse_training/export",
    format: str = "onnx",
    dataset: str = "mnist5k",
    batch_size: int = 32,
) -> None:
    """Removes dead filters and writes safetensors and ONNX, with a table of size, FLOPs and latency.

    Args:
        ckpt_path: Checkpoint of a run of this recipe; filters go where whole filters are masked
            (--config recipes/sparse_training_filters.yaml).
        output: Folder to write to.
        format: "onnx" or "pt2" (torch.export).
        dataset: Data of the run: the size of its images.
        batch_size: Images in the batch whose latency is measured.
    """
    if not Path(ckpt_path).is_file():
        raise FileNotFoundError(
            f"ckpt_path={ckpt_path} is no file; a run's last one is <run>/checkpoints/last.ckpt"
        )
    check_checkpoint(ckpt_path)
    masks = masks_in_checkpoint(ckpt_path)
    module = ImageClassifier.load_from_checkpoint(ckpt_path, map_location="cpu", weights_only=True)
    masks = {name.removeprefix("model."): mask for name, mask in masks.items()}
    images = torch.zeros(batch_size, *ImageData(dataset).shape).normal_(
        generator=torch.Generator().manual_seed(0)
    )
    print(export_model(module.model, output, images, masks, format=format))
    if all(mask.flatten(1).any(1).all() for mask in masks.values()):
        print(
            "No filter is dead: single zero weights make a model neither smaller nor faster here. Train with"
        )
        print("--config recipes/sparse_training_filters.yaml, or see to_csr and to_semi_structured.")
