"""Time sparse training and its peers, same net and run: ``python tests/benchmarks/bench_peers.py``.

``checks``: what each peer gets wrong, measured, and the same asked of ours. ``timing``: time per step, time
of a mask update, memory; ResNet-20 on batches of CIFAR's shape. ``accuracy``: test accuracy at equal density
on real digits. Peers that are not installed are named and left out::

    pip install --no-deps --target PEERS sparsimony rigl-torch
    PYTHONPATH=PEERS python tests/benchmarks/bench_peers.py all

Times are blocks of steps, all ways in turn, each from the same start; a share is the median over rounds of a
block over the plain block of the same round, with its range. A block holds one mask update. "Own code" is
the time in a way's own functions, a steadier figure, where it does not hide in the forward and backward
pass. "Held" are bytes a weight above plain training after the second update, "peak" those that a step with an
update allocates at most after its backward pass, above plain. Time it on an idle machine; on a busy one,
``--threads 1 --cpu-time`` still gives sound shares.
"""

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Iterable, Sequence

import torch
from lightning.pytorch import seed_everything
from peer_checks import run_checks
from peer_runs import WARM_UP, Batch, Memory, Speed, Watcher, new_net, run_loop, run_trainer
from peers import LOOP_WAYS, TRAINER_WAYS, Plan, missing, sizes, sparsity_of
from torch import nn
from torch.utils.data import DataLoader

from lightning_plasticity.data import ImageData


def available(ways: Iterable[str]) -> list[str]:
    """The ways of training that are installed; says how to install the others."""
    for name in ways:
        if hint := missing(name):
            print(f"{name} is left out, it is not installed: {hint}")
    return [name for name in ways if not missing(name)]


TWINS = {
    "plain Lightning": "plain torch loop",
    "ours: GraNet": "ours: GraNet in a loop",
    "ours: RigL": "ours: RigL in a loop",
}
"""Ways of training that do the same under a Trainer and in a plain loop."""

# ---------------------------------------------------------------------------------------------------- timing


def block(name: str, plan: Plan, batch: Batch, steps: int, watcher: Watcher, model: str) -> Watcher:
    """Train a fresh net for some steps on one batch."""
    net, batches = new_net(model, batch[0].shape[1]), DataLoader([batch] * steps, batch_size=None)
    if name in TRAINER_WAYS:
        run_trainer(TRAINER_WAYS[name], net, plan, batches, watcher, max_steps=steps)
    else:
        run_loop(LOOP_WAYS[name], net, plan, [batches], watcher)
    return watcher


def bench_timing(options: argparse.Namespace) -> None:
    """Print time per step, update and memory, each against plain training of its own kind."""
    batch = (torch.randn(options.batch, 3, 32, 32), torch.randint(10, (options.batch,)))
    steps, weights = options.steps, sum(sizes(new_net(options.model, 3)))
    plan = Plan(steps, WARM_UP + steps, 4 * steps, options.sparsity, initial=0.5)
    clock = time.process_time if options.cpu_time else time.perf_counter
    names = available([*TRAINER_WAYS, *LOOP_WAYS])
    found: dict[str, list[Speed]] = {name: [] for name in names}
    for turn in range(options.rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            speed = block(name, plan, batch, WARM_UP + steps, Speed(clock), options.model)
            found[name].append(speed)
    short = Plan(4, 4, 16, options.sparsity, initial=0.5)
    memory = {name: block(name, short, batch, 4, Memory(4), options.model) for name in names}
    print(f"\n{options.model}, {weights:,} weights, batch {options.batch}, an update every {steps} steps\n")
    print("| | ms a step | over plain (range) | own code | update, ms | update, steps", end="")
    print(" | held, B/weight | peak, B/weight |")
    print("|---|---|---|---|---|---|---|---|")
    for name in names:
        plain = "plain Lightning" if name in TRAINER_WAYS else "plain torch loop"
        times = timing_cells(found[name], found[plain]) if name != plain else ["", "", "", ""]
        own = (memory[name].held - memory[plain].held, memory[name].peak - memory[plain].peak)
        speed = f"{1e3 * statistics.median(s.step for s in found[name]):.1f}"
        print("|", " | ".join([name, speed, *times, *(f"{b / weights:.1f}" for b in own)]), "|")


def timing_cells(found: Sequence[Speed], plain: Sequence[Speed]) -> list[str]:
    """Step over plain step, own code over plain step, update in ms and in plain steps: medians of pairs."""
    pairs = list(zip(found, plain, strict=True))
    shares = [100 * (s.step / p.step - 1) for s, p in pairs]
    own = 100 * statistics.median(s.own_code / p.step for s, p in pairs)
    return [
        f"{statistics.median(shares):+.2f} % ({min(shares):+.1f} to {max(shares):+.1f})",
        f"{own:.2f} %" if found[0].separable else "not separable",
        f"{1e3 * statistics.median(s.update for s in found):.1f}",
        f"{statistics.median(s.update / p.step for s, p in pairs):.2f}",
    ]


# -------------------------------------------------------------------------------------------------- accuracy


@torch.no_grad()
def accuracy(net: nn.Module, batches: Iterable[Batch]) -> float:
    """Percent right."""
    net.eval()
    right = [(net(images).argmax(1) == labels).float() for images, labels in batches]
    return 100 * float(torch.cat(right).mean())


def train_and_test(name: str, options: argparse.Namespace, seed: int) -> tuple[float, float, nn.Module]:
    """Density and test accuracy of a net trained on real images, and the net."""
    seed_everything(seed, verbose=False)
    data = ImageData(options.dataset, batch_size=64, augment=False, seed=seed)
    data.setup()
    loader, net = data.train_dataloader(), new_net(options.model, data.shape[0], seed)
    plan = Plan(options.every, len(loader), options.epochs * len(loader), options.sparsity)
    if name in TRAINER_WAYS:
        run_trainer(TRAINER_WAYS[name], net, plan, loader, Watcher(), max_epochs=options.epochs)
    else:
        run_loop(LOOP_WAYS[name], net, plan, epochs_of(loader, options.epochs), Watcher())
    return 1 - sparsity_of(net), accuracy(net, data.test_dataloader()), net


def epochs_of(loader: DataLoader, epochs: int) -> Iterable[DataLoader]:
    """The same batches in the same order as under a Trainer, which tells the sampler its epoch."""
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        yield loader


def bench_accuracy(options: argparse.Namespace) -> None:
    """Print density and test accuracy over seeds, and whether a plain loop gives the nets of a Trainer."""
    print(
        f"\n{options.model} on {options.dataset}, {options.epochs} epochs, an update every {options.every} "
        f"steps, target density {1 - options.sparsity:.4f}, {options.seeds} seeds\n"
    )
    print("| | density | test accuracy, mean +- sd | each seed |")
    print("|---|---|---|---|")
    first: dict[str, nn.Module] = {}
    for name in available([*TRAINER_WAYS, *(way for way in LOOP_WAYS if way not in TWINS.values())]):
        densities, scores, nets = zip(
            *(train_and_test(name, options, seed) for seed in range(options.seeds)), strict=True
        )
        first[name] = nets[0]
        spread = f"{statistics.stdev(scores):.2f}" if len(scores) > 1 else "?"
        each = ", ".join(f"{score:.2f}" for score in scores)
        density, score = statistics.mean(densities), statistics.mean(scores)
        print(f"| {name} | {density:.4f} | {score:.2f} +- {spread} | {each} |", flush=True)
    print()
    for name, twin in TWINS.items():
        expected, found = first[name].state_dict(), train_and_test(twin, options, 0)[2].state_dict()
        same = all(torch.equal(expected[key], found[key]) for key in expected)
        print(f"{name} and {twin} end in the same net, bit for bit: {same}")


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", nargs="?", default="all", choices=["checks", "timing", "accuracy", "all"])
    add = parser.add_argument
    add("--model", default="resnet20", help="a net of lightning_plasticity.models")
    add("--sparsity", type=float, default=0.98, help="where everybody shall end")
    add("--threads", type=int, default=2)
    add("--steps", type=int, default=50, help="timing: steps of a block, and between updates")
    add("--rounds", type=int, default=4, help="timing: blocks of each way of training")
    add("--batch", type=int, default=32, help="timing: images a batch")
    add("--cpu-time", action="store_true", help="timing: processor time, not wall time; with --threads 1")
    add("--dataset", default="digits", choices=["digits", "mnist5k"], help="accuracy: real images")
    add("--epochs", type=int, default=10, help="accuracy: length of a run")
    add("--every", type=int, default=25, help="accuracy: steps between updates")
    add("--seeds", type=int, default=3, help="accuracy: runs of each way of training")
    return parser.parse_args()


def main() -> None:
    """Run what is asked for."""
    options = arguments()
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")  # advice on loggers and loaders, of no use here
    warnings.filterwarnings("ignore", message=".*overridden after learning rate scheduler")  # by two peers
    kind = "processor" if options.cpu_time else "wall"
    print(f"torch {torch.__version__}, threads: {options.threads}, {kind} time")
    if options.part in ("checks", "all"):
        run_checks()
    if options.part in ("timing", "all"):
        bench_timing(options)
    if options.part in ("accuracy", "all"):
        bench_accuracy(options)


if __name__ == "__main__":
    main()
