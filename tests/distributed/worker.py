"""What two processes do together: `python -m tests.distributed.worker RANK PORT FOLDER STRATEGY`.

Each scenario returns plain tensors, stored as FOLDER/<scenario>.<rank>.pt; the tests read them. The same
scenarios run in one process with the whole batch as the reference.
"""

import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

from lightning_plasticity.callbacks import RigL, SparseTraining
from tests.distributed.run import METHODS, SaveAt, Uneven, train
from tests.trainer.modules import adamw

CheckedRigL = partial(RigL, 0.6, update_every=3, check_ranks=True)

# --------------------------------------------------------------------------------------------------- DDP


def ddp_method(name: str, rank: int, folder: Path) -> dict[str, Any]:
    """Processes whose global generators and own weights differ before the strategy makes weights equal."""
    return train(METHODS[name](), Uneven(seed=rank), DDPStrategy(), 2)


def ddp_accumulation(rank: int, folder: Path) -> dict[str, Any]:
    """Two batches of 8 on each of two processes make a step of 32."""
    sparse, module = METHODS["granet"](), Uneven()
    return train(sparse, module, DDPStrategy(), 2, accumulate_grad_batches=2)


def ddp_nan(rank: int, folder: Path) -> dict[str, Any]:
    """One process alone meets a gradient that is not finite, at an update; the model is left to its fate."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = train(METHODS["granet"](), Uneven(nan_at=(6, 1)), DDPStrategy(), 2, steps=6)
    return result | {"warned": any("not finite" in str(w.message) for w in caught)}


def stop_and_resume(strategy: Callable[[], Any], sharded: bool, path: Path) -> dict[str, Any]:
    """One run without a stop, which saves after step 7, inside an epoch; and one that goes on from there."""

    def run(seed: int, **options: Any) -> dict[str, Any]:
        module = Uneven(seed, adamw, sharded)
        return train(METHODS["rigl"](), module, strategy(), 2, alike=True, **options)

    return {"whole": run(0, extra=[SaveAt(7, path)]), "resumed": run(1, ckpt_path=path)}


def ddp_resume(rank: int, folder: Path) -> dict[str, Any]:
    """From a single file, as DDP writes it."""
    return stop_and_resume(DDPStrategy, False, folder / "ddp.ckpt")


class Tamper(L.Callback):
    """Flips one entry of a mask on the second process, just before the update after step 6."""

    def __init__(self, sparse: SparseTraining) -> None:
        self.sparse = sparse

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 5 and trainer.global_rank == 1:
            mask = self.sparse._engines[0][1]._masks[1].view(-1)
            mask[:2] = ~mask[:2]


def ddp_check_ranks(rank: int, folder: Path) -> dict[str, Any]:
    """With the check: an honest run, and one whose masks are tampered with."""
    honest = CheckedRigL()
    train(honest, Uneven(), DDPStrategy(), 2)
    tampered, message = CheckedRigL(), ""
    try:
        train(tampered, Uneven(), DDPStrategy(), 2, [Tamper(tampered)])
    except RuntimeError as error:
        message = str(error)
    return {"honest": honest._engines[0][1].step, "message": message, "step": tampered._engines[0][1].step}


# ------------------------------------------------------------------------------------------------- FSDP2


def fsdp2(**options: Any) -> ModelParallelStrategy:
    """Parameters sharded over two processes."""
    return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, **options)


def fsdp2_method(name: str, rank: int, folder: Path) -> dict[str, Any]:
    """Every process makes the same weights and keeps its shard."""
    return train(METHODS[name](), Uneven(sharded=True), fsdp2(), 2)


def fsdp2_resume(rank: int, folder: Path) -> dict[str, Any]:
    """From a checkpoint of shards, and from a single file."""
    return {
        kind: stop_and_resume(
            partial(fsdp2, save_distributed_checkpoint=kind == "shards"), True, folder / f"fsdp2_{kind}.ckpt"
        )
        for kind in ("shards", "file")
    }


def fsdp2_check_ranks(rank: int, folder: Path) -> dict[str, Any]:
    """The check does not take shards, which differ, for masks that differ."""
    return train(CheckedRigL(), Uneven(sharded=True), fsdp2(), 2)


def fsdp2_other_dimension(rank: int, folder: Path) -> dict[str, Any]:
    """Tensor parallelism that cuts inputs is refused."""

    class Rowwise(Uneven):
        def configure_model(self) -> None:
            parallelize_module(self.head, self.device_mesh["tensor_parallel"], RowwiseParallel())

    strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2)
    try:
        train(RigL(0.6, include=["head"]), Rowwise(), strategy, 2)
    except MisconfigurationException as error:
        return {"message": str(error)}
    return {"message": ""}


def fsdp2_partly(rank: int, folder: Path) -> dict[str, Any]:
    """One layer sharded and the others whole is refused."""

    class Partly(Uneven):
        def configure_model(self) -> None:
            from torch.distributed.fsdp import fully_shard

            fully_shard(self.conv2, mesh=self.device_mesh["data_parallel"])

    try:
        train(METHODS["granet"](), Partly(), fsdp2(), 2)
    except MisconfigurationException as error:
        return {"message": str(error)}
    return {"message": ""}


SCENARIOS: dict[str, dict[str, Callable[[int, Path], dict[str, Any]]]] = {
    "ddp": {name: partial(ddp_method, name) for name in METHODS}
    | {
        "accumulation": ddp_accumulation,
        "nan": ddp_nan,
        "resume": ddp_resume,
        "check_ranks": ddp_check_ranks,
    },
    "fsdp2": {name: partial(fsdp2_method, name) for name in METHODS}
    | {"resume": fsdp2_resume, "check_ranks": fsdp2_check_ranks, "partly": fsdp2_partly}
    | {"other_dimension": fsdp2_other_dimension},
}


def main(rank: int, port: int, folder: Path, strategy: str) -> None:
    """Run every scenario of a strategy as one of two processes."""
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
        "TORCHELASTIC_RUN_ID": "test",
    }
    warnings.filterwarnings("ignore")
    for name, scenario in SCENARIOS[strategy].items():
        torch.save(scenario(rank, folder), folder / f"{name}.{rank}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
