"""Time the federated memory: ``python tests/benchmarks/bench_hopfield.py [dense] [scale] [counts]``.

``dense``: one round at N = 2,000 against the paper's pipeline on the same data (N x N operators, 200
unlearning steps, layered dynamics), both float64. ``scale``: one round at N = 100,000 with 10,000 examples
and rank 128, where an N x N operator would take 40 GB; also the largest memory that the process ever had.
``counts``: how many archetypes one round finds, for K, N and quality, ten seeds each, clients of unequal
sizes and disjoint supports; ``--dense-seeds`` runs the paper's pipeline on the same data, told the quality.
Wall seconds need an idle machine; processor seconds (of all threads) stand beside them for a busy one.
"""

import argparse
import csv
import resource
import time
from pathlib import Path

import torch

from lightning_plasticity.hopfield import (
    FederationConfig,
    Memory,
    client_step,
    combine,
    federate,
    server_step,
)
from lightning_plasticity.hopfield.dense import DenseFederation


def make(archetypes, neurons, sizes, quality=0.8, seed=0):
    """Archetypes and clients' int8 examples, made in slices so that no float copy of all exists."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.where(torch.rand(archetypes, neurons, generator=generator) < 0.5, 1, -1).to(torch.int8)
    clients = []
    for size in sizes:
        x = truth[torch.randint(archetypes, (size,), generator=generator)]
        for part in torch.split(x, 250):
            part[torch.rand(part.shape, generator=generator) < (1 - quality) / 2] *= -1
        clients.append(x)
    return truth, clients


def overlap(found, truth):
    """Smallest magnetisation."""
    if not len(found):
        return 0.0
    return float((found.float() @ truth.float().T).abs().amax(0).min()) / truth.shape[1]


def clocks():
    """Wall and processor seconds."""
    return time.perf_counter(), time.process_time()


def since(start):
    """Both, from then on."""
    return [now - then for now, then in zip(clocks(), start, strict=True)]


def tell(name, seconds, more=""):
    """One line."""
    print(f"  {name:10} {seconds[0]:8.2f} s wall, {seconds[1]:8.2f} s processor   {more}", flush=True)


def bench_dense(neurons):
    """One round of each, same data."""
    truth, clients = make(6, neurons, [500, 500, 1000, 2000])
    print(f"N = {neurons:,}, K = 6, 4,000 examples, one round, {torch.get_num_threads()} threads")
    federate(clients)  # warm up
    start = clocks()
    memory = federate(clients)
    ours = since(start)
    tell("ours", ours, f"K {len(memory.archetypes)}, m >= {overlap(memory.archetypes, truth):.3f}")
    dense = DenseFederation(0.5, explicit=True)
    start = clocks()
    dense.round([x.double() for x in clients])
    theirs = since(start)
    tell("dense", theirs, f"K {len(dense.archetypes)}, m >= {overlap(dense.archetypes, truth):.3f}")
    print(f"  ratio      {theirs[0] / ours[0]:8.0f}        {theirs[1] / ours[1]:8.0f}", flush=True)


def bench_scale(neurons, examples, rank, archetypes=20):
    """One round, exchange by exchange."""
    config = FederationConfig(sketch_rank=rank, dtype="float32")
    truth, clients = make(archetypes, neurons, [examples // 4] * 4)
    print(f"N = {neurons:,}, K = {archetypes}, {examples:,} examples, rank {rank}, float32, "
          f"{torch.get_num_threads()} threads")  # fmt: skip
    memory, processor, start = Memory.empty(neurons, config), 0.0, clocks()
    for exchange in range(2):
        begun = clocks()
        sent = {c: client_step(x, memory, config, client_id=c) for c, x in enumerate(clients)}
        tell(f"clients {exchange}", since(begun))
        processor += since(begun)[1]
        begun = clocks()
        memory = server_step(combine(sent, memory, config), memory, config)
        tell(f"server {exchange}", since(begun))
    tell("one round", since(start))
    flops = 3 * 4 * examples * neurons * rank  # products with X: two exchanges, one for a client's own view
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"  arithmetic {flops / processor / 1e9:8.0f} Gflop a processor second of clients")
    print(f"  memory     {peak:8.2f} GiB at most, of which the examples {examples * neurons / 2**30:.2f}")
    print(
        f"  found      K {len(memory.archetypes)}, m >= {overlap(memory.archetypes, truth):.4f}", flush=True
    )


def disjoint(archetypes, truth, pooled):
    """Deals examples to K / 2 clients: each archetype to one of them, unequal numbers to each."""
    number = max(2, archetypes // 2)
    cuts = torch.linspace(0.2, 1, number).cumsum(0)
    bounds = (cuts / cuts[-1] * archetypes).round().int().tolist()
    for client in range(number):  # at least one archetype each
        bounds[client] = max(bounds[client], (bounds[client - 1] if client else 0) + 1)
    owner = (pooled.float() @ truth.float().T).argmax(1)
    client = torch.bucketize(owner, torch.tensor(bounds), right=True)
    return [pooled[client == c] for c in range(number)]


def count_once(archetypes, neurons, quality, seed, examples, dense):
    """One round on one draw: what is found, and how long it takes."""
    truth, clients = make(archetypes, neurons, [examples] * archetypes, quality, seed)
    clients = disjoint(archetypes, truth, torch.cat(clients))
    start = clocks()
    if dense:
        pipeline = DenseFederation(quality=quality, seed=seed)
        pipeline.round([x.double() for x in clients])
        found = pipeline.archetypes
    else:
        found = federate(clients).archetypes
    sizes = [len(x) for x in clients]
    return {
        "method": "dense" if dense else "ours",
        "archetypes": archetypes,
        "neurons": neurons,
        "quality": quality,
        "seed": seed,
        "clients": len(clients),
        "smallest": min(sizes),
        "largest": max(sizes),
        "found": len(found),
        "m_min": round(overlap(found, truth), 4),
        "processor_s": round(since(start)[1], 2),
    }


def bench_counts(options, examples=60):
    """One round of K / 2 clients of unequal sizes and disjoint supports, over a grid: one row a run."""
    print(f"{examples} examples an archetype on average: exact K of how many, worst smallest overlap")
    rows = []
    for archetypes in options.archetypes:
        for neurons in [options.neurons] if options.neurons else (400, 1000, 2000):
            for quality in (0.6, 0.7, 0.8):
                cells = ""
                for dense, seeds in ((False, options.seeds), (True, options.dense_seeds)):
                    cell = [
                        count_once(archetypes, neurons, quality, seed, examples, dense)
                        for seed in range(200, 200 + seeds)
                    ]
                    exact = sum(row["found"] == archetypes for row in cell)
                    worst = min((row["m_min"] for row in cell), default=0)
                    span = sorted(row["found"] for row in cell)
                    if cell:
                        name = cell[0]["method"]
                        cells += f"   {name} {exact}/{seeds} [{span[0]}-{span[-1]}] {worst:.3f}"
                    rows += cell
                print(f"  K={archetypes:<3} N={neurons:<5} r={quality}{cells}", flush=True)
                if options.csv:
                    with Path(options.csv).open("w", newline="") as file:
                        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
                        writer.writeheader()
                        writer.writerows(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=["dense", "scale"])
    parser.add_argument("--neurons", type=int)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--archetypes", type=int, nargs="*", default=[3, 4, 6, 10, 20, 40], help="of counts")
    parser.add_argument("--seeds", type=int, default=10, help="of counts, from 200")
    parser.add_argument("--dense-seeds", type=int, default=0, help="of counts: the paper's pipeline too")
    parser.add_argument("--csv", help="of counts: every run")
    options = parser.parse_args()
    if "dense" in options.parts:
        bench_dense(options.neurons or 2000)
    if "counts" in options.parts:
        bench_counts(options)
    if "scale" in options.parts:
        bench_scale(options.neurons or 100_000, options.examples, options.rank)
