"""Time smaller models: ``python tests/benchmarks/bench_export.py [shrink] [csr] [conv]``. Prints ratios.

``shrink``: nets whose masks remove 50 % and 70 % of the filters, against torch-pruning's own uniform L1
pruning of the same nets at the same ratios; batches of 32 and 1. ``csr``: masked linear layers against dense
ones, per kernel. ``conv``: what a 3 x 3 convolution would cost as a sparse product (not shipped). Shares and
speed-ups are medians over paired rounds. Run it on an idle machine: two threads that wait for each other are
easily disturbed. On a busy one, ``--threads 1 --cpu-time`` still gives sound ratios.
"""

import argparse
import copy
import statistics
import time

import torch
import torch_pruning as tp
from torch import nn

from lightning_plasticity.models.convnets import resnet20, vgg16
from lightning_plasticity.sparsity.export.baking import bake
from lightning_plasticity.sparsity.export.coupling import filter_groups
from lightning_plasticity.sparsity.export.csr import CSRLinear
from lightning_plasticity.sparsity.export.surgery import shrink

WARM_UP = 3
clock = time.perf_counter


def paired_times(functions, rounds):
    """Seconds of every function in every round, in turns."""
    times = {name: [] for name in functions}
    with torch.no_grad():
        for turn in range(-WARM_UP, rounds):
            for name, function in functions.items():
                start = clock()
                function()
                if turn >= 0:
                    times[name].append(clock() - start)
    return times


def ratio(above, below):
    """Median over rounds of one time over another."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def settle(model):
    """BatchNorm as after training: a constant of its own for every dead channel, zero for none of them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
            nn.init.normal_(module.running_mean, 0.0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def l1_masks(model, groups, share):
    """Kill the filters of least L1 norm, summed over the layers of a group, as many as torch-pruning does."""
    masks = {}
    for names in groups:
        weights = [model.get_parameter(name).detach() for name in names]
        norms = sum(weight.abs().flatten(1).sum(1) for weight in weights)
        alive = torch.zeros(len(norms), dtype=torch.bool)
        alive[norms.argsort(descending=True)[: int(len(norms) * (1 - share))]] = True
        masks |= {name: alive.view(-1, 1, 1, 1) for name in names}
    return masks


def uniform_l1(model, example, share):
    """torch-pruning's own way: every group by its L1 norm, the classifier excepted."""
    pruned = copy.deepcopy(model)
    classifier = [module for module in pruned.modules() if isinstance(module, nn.Linear)][-1]
    importance = tp.importance.MagnitudeImportance(p=1)
    pruner = tp.pruner.MagnitudePruner(
        pruned, example, importance=importance, pruning_ratio=share, ignored_layers=[classifier]
    )
    pruner.step()
    return pruned.eval()


def nets_of(build, share):
    """The dense net, the peer's and ours, and the largest difference between ours and the masked net."""
    torch.manual_seed(0)
    dense = settle(build())
    example = torch.randn(2, 3, 32, 32)
    coupled = filter_groups(dense, example)
    masks = l1_masks(dense, coupled, share)
    nets = {
        "dense": dense,
        "torch-pruning, uniform L1": uniform_l1(dense, example, share),
        "shrink": shrink(dense, example, masks),
        "shrink, fuse_norms=False": shrink(dense, example, masks, fuse_norms=False),
    }
    if any(len(names) > 1 for names in coupled):
        alone = [[name] for names in coupled for name in names]
        nets["shrink, each layer masked by itself"] = shrink(dense, example, l1_masks(dense, alone, share))
    x = torch.randn(32, 3, 32, 32)
    with torch.no_grad():
        error = (nets["shrink"](x) - bake(dense, masks).eval()(x)).abs().max()
    return nets, float(error)


def bench_shrink(rounds):
    """Shares of dense latency."""
    for build in (resnet20, vgg16):
        for share in (0.5, 0.7):
            nets, error = nets_of(build, share)
            print(
                f"\n{build.__name__}, {share:.0%} of the filters masked; largest error of shrink {error:.1e}"
            )
            print(f"  {'':<38}{'parameters':>12}{'batch 32':>22}{'batch 1':>22}")
            cells = {name: f"{sum(p.numel() for p in net.parameters()):>12,}" for name, net in nets.items()}
            for batch in (32, 1):
                x = torch.randn(batch, 3, 32, 32)
                times = paired_times(
                    {name: lambda net=net, x=x: net(x) for name, net in nets.items()}, rounds
                )
                for name, found in times.items():
                    share_of_dense = ratio(found, times["dense"])
                    cells[name] += f"{statistics.median(found) * 1e3:>11.2f} ms ({share_of_dense:.2f})"
            for name, text in cells.items():
                print(f"  {name:<38}{text}")


def bench_csr(rounds):
    """Speed-up over the dense layer, per kernel, size, batch and density."""
    densities = (0.3, 0.2, 0.1, 0.05, 0.02, 0.01)
    for batch in (1, 32):
        print(f"\nlinear layers, batch {batch}: speed-up over dense at density {densities}")
        for outputs, inputs in ((256, 256), (512, 512), (1024, 1024), (2048, 2048), (4096, 1024)):
            rows = {}
            for density in densities:
                times = paired_times(linear_kernels(outputs, inputs, batch, density), rounds)
                for name, found in times.items():
                    rows.setdefault(name, []).append(ratio(times["dense"], found))
            for name, found in rows.items():
                if name != "dense":
                    values = "".join(f"{value:8.2f}" for value in found)
                    print(f"  {outputs} x {inputs:<6}{name:<22}{values}")


def linear_kernels(outputs, inputs, batch, density):
    """One masked layer (constant fan-in, so that the condensed form applies) by every way to compute it."""
    fan_in, block = max(1, round(density * inputs)), 16
    columns = torch.rand(outputs, inputs).topk(fan_in, 1).indices.sort(1).values
    mask = torch.zeros(outputs, inputs, dtype=torch.bool).scatter_(1, columns, True)
    linear = nn.Linear(inputs, outputs)
    linear.weight.data *= mask
    condensed = linear.weight.detach().gather(1, columns)
    blocks = torch.rand(outputs // block, inputs // block) < density
    blocked = torch.randn(outputs, inputs) * blocks.repeat_interleave(block, 0).repeat_interleave(block, 1)
    bsr, x = blocked.to_sparse_bsr((block, block)), torch.randn(batch, inputs)
    csr, bias = CSRLinear.from_linear(linear, mask), linear.bias.detach()
    plain = csr.weight
    kernels = {
        "dense": lambda: linear(x),
        "CSRLinear (ours)": lambda: csr(x),
        "torch CSR, F.linear": lambda: nn.functional.linear(x, plain, bias),
        "condensed, gather": lambda: (x[:, columns] * condensed).sum(-1) + bias,
    }
    for name, kernel in kernels.items():
        torch.testing.assert_close(kernel(), linear(x), rtol=1e-4, atol=1e-4, msg=name)
    return kernels | {"BSR 16 x 16 (blocks)": lambda: torch.mm(bsr, x.t().contiguous()).t() + bias}


def linear_of(weight):
    """A convolution's weight as that of a linear layer over patches."""
    linear = nn.Linear(weight[0].numel(), len(weight), bias=False)
    linear.weight.data = weight.flatten(1)
    return linear


def bench_conv(rounds):
    """A 3 x 3 convolution as unfold and a CSR product, against the dense one."""
    print("\n3 x 3 convolutions, batch 32: speed-up of unfold + CSR over dense at density 0.1, 0.05, 0.02")
    for channels, size in ((64, 32), (256, 8), (512, 4)):
        conv, x = (
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            torch.randn(32, channels, size, size),
        )
        values = []
        for density in (0.1, 0.05, 0.02):
            weight = conv.weight.detach() * (torch.rand_like(conv.weight) < density)
            csr = CSRLinear.from_linear(linear_of(weight), weight.flatten(1) != 0).weight

            def sparse(csr=csr, x=x):
                patches = nn.functional.unfold(x, 3, padding=1)
                return torch.mm(csr, patches.transpose(0, 1).flatten(1))

            times = paired_times({"dense": lambda c=conv, x=x: c(x), "sparse": sparse}, rounds)
            values.append(ratio(times["dense"], times["sparse"]))
        print(f"  {channels} channels, {size} x {size}" + "".join(f"{value:8.2f}" for value in values))


BENCHMARKS = {"shrink": bench_shrink, "csr": bench_csr, "conv": bench_conv}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=list(BENCHMARKS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--cpu-time", action="store_true", help="processor time instead of wall time")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    kind = "processor" if options.cpu_time else "wall"
    print(f"torch {torch.__version__}, threads: {options.threads}, rounds: {options.rounds}, {kind} time")
    for part in options.parts:
        BENCHMARKS[part](options.rounds)
