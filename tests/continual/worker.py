"""One of two processes that learn together: `python -m tests.continual.worker RANK PORT FOLDER BACKBONE`."""

import os
import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch.strategies import DDPStrategy

from tests.continual.nets import digits, fitted, safe, tensors


def learn(backbone, processes, **options):
    """Three sessions, on one process with batches of 32 or on two with 16 each."""
    model = safe(backbone, losses={"alignment": 5.0, "redundancy": 0.1}, **options)
    shared = {"strategy": DDPStrategy(), "devices": processes} if processes > 1 else {}
    data = digits(batch_size=32 // processes, epochs_per_session=1)
    # whole batches alone: the last of a session would be padded for two processes
    fitted(model, data, limit_train_batches=5, **shared)
    record = model.record.state()["counts"]
    counts = {f"{name}.{key}": value for name, pair in record.items() for key, value in pair.items()}
    return tensors(model) | counts


def main(rank, port, folder, backbone):
    """Learn as one of two, and store what was learned."""
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank,
        "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    warnings.filterwarnings("ignore")
    torch.save(learn(backbone, 2), Path(folder) / f"{backbone}.{rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
