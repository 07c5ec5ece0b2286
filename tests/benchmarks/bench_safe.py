"""What a step, the weights and the ridge solve of SAFE cost: ``python tests/benchmarks/bench_safe.py``.

A training step beside a restatement of the public way: three whole backbones, two forwards of the one that
is trained, the d x d matrix of the transfer loss, the sum over the batch. The same features, losses,
batches and memory layout in both. Then the ridge solve at M = 4000 with the search of its penalty beside
six LU solves. Ratios are medians over paired rounds.
"""

import copy
import statistics
import time
from functools import partial

import torch
from torch.nn import functional as F

from lightning_plasticity.continual.adapters import AdapterPair
from lightning_plasticity.continual.backbones import load_backbone
from lightning_plasticity.continual.heads import CosineHead, RidgeHead
from lightning_plasticity.continual.losses import alignment_loss, cross_classification_loss, transfer_loss

BATCH, CLASSES, OLD, ROUNDS, WIDTH = 48, 10, 4, 5, 4000
PENALTIES = (1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)


def nets():
    """The recipe's backbone, and a small transformer."""
    yield "EfficientNet-lite0, 32 px", load_backbone(), 32, "ssf"
    vit = load_backbone("vit_tiny_patch16_224.augreg_in21k", weights="none", image_size=64)
    yield "ViT-Ti/16, 64 px", vit, 64, "bottleneck"


def heads(width):
    """Fast and slow cosine heads with the same random rows."""
    rows = torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(0))
    pair = CosineHead(width, CLASSES), CosineHead(width, CLASSES, trainable=False)
    for head in pair:
        head.set_rows(0, rows)
    return pair


class Public:
    """Three backbones, as the authors' code has them."""

    def __init__(self, net, peft):
        self.pretrained = copy.deepcopy(net).to(memory_format=torch.channels_last)
        self.slow, self.fast = (
            AdapterPair(copy.deepcopy(net), peft).to(memory_format=torch.channels_last) for _ in range(2)
        )
        self.fast_head, self.slow_head = heads(net.num_features)

    def weights(self):
        """Bytes of all three; each tuned one counts its own adapter once."""
        extra = sum(p.nbytes for _, p in self.fast.adapter_parameters())
        return sum(3 * t.nbytes for t in self.pretrained.state_dict().values()) + 2 * extra

    def first(self, x, y):
        """Session 1: the trained net twice, the pre-trained once, and `Mx` itself."""
        loss = F.cross_entropy(self.fast_head(self.fast.features(x), OLD), y % OLD)
        s, p = (F.normalize(f) for f in (self.fast.features(x), self._no_grad(self.pretrained, x)))
        matrix = s.T @ p / len(s)
        on = torch.diagonal(matrix).add(-1).pow(2).sum()
        off = matrix.flatten()[:-1].view(len(matrix) - 1, -1)[:, 1:].pow(2).sum()
        return loss + on + 0.1 * off

    def later(self, x, y):
        """Later sessions: the trained net twice, the slow one once."""
        loss = F.cross_entropy(self.fast_head(self.fast.features(x), CLASSES), y)
        fast, slow = self.fast.features(x), self._no_grad(self.slow, x)
        terms = cross_classification_loss(fast, slow, y, self.fast_head, self.slow_head, OLD, CLASSES)
        return loss + 0.5 * alignment_loss(fast, slow, "sum") + sum(terms)

    @staticmethod
    def _no_grad(net, x):
        with torch.no_grad():
            return net(x)


class Ours:
    """One backbone, two adapters, one forward of each learner."""

    def __init__(self, net, peft):
        self.pair = AdapterPair(copy.deepcopy(net), peft).to(memory_format=torch.channels_last)
        self.fast_head, self.slow_head = heads(net.num_features)

    def weights(self):
        """Bytes of the backbone and both adapters."""
        return sum(t.nbytes for t in self.pair.state_dict().values())

    def first(self, x, y):
        """Session 1."""
        fast, guide = self.pair.features(x), self.pair.features(x, "pretrained")
        loss = F.cross_entropy(self.fast_head(fast, OLD), y % OLD)
        return loss + transfer_loss(fast, guide, 1.0, 0.1)

    def later(self, x, y):
        """Later sessions."""
        fast, slow = self.pair.features(x), self.pair.features(x, "slow")
        loss = F.cross_entropy(self.fast_head(fast, CLASSES), y)
        terms = cross_classification_loss(fast, slow, y, self.fast_head, self.slow_head, OLD, CLASSES)
        return loss + 24 * alignment_loss(fast, slow) + sum(terms)

    def later_cached(self, x, y):
        """Later sessions without augmentation: the slow features are kept."""
        if not hasattr(self, "_slow"):
            self._slow = self.pair.features(x, "slow")
        fast, slow = self.pair.features(x), self._slow
        loss = F.cross_entropy(self.fast_head(fast, CLASSES), y)
        terms = cross_classification_loss(fast, slow, y, self.fast_head, self.slow_head, OLD, CLASSES)
        return loss + 24 * alignment_loss(fast, slow) + sum(terms)


def seconds(function):
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(title, ours, other, rounds=ROUNDS):
    """Median times of both and of their ratio other / ours, over paired rounds after a warm-up."""
    pairs = [(seconds(ours), seconds(other)) for _ in range(rounds + 1)][1:]
    mine, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"{title:<58}{mine:9.3f} s {theirs:9.3f} s {ratio:8.2f} x", flush=True)


def step(way, session, x, y):
    """Forward and backward of one batch."""
    getattr(way, session)(x, y).backward()


def steps():
    """Training steps and weights."""
    for name, net, size, peft in nets():
        x = torch.randn(BATCH, 3, size, size, generator=torch.Generator().manual_seed(1))
        batch = x, torch.arange(BATCH) % CLASSES
        ours, public = Ours(net, peft), Public(net, peft)
        for session in ("first", "later", "later_cached"):
            title = f"{name}: step, {session.replace('_', ', ')}"
            other = session.partition("_")[0]
            compare(title, partial(step, ours, session, *batch), partial(step, public, other, *batch))
        mine, theirs = ours.weights() / 2**20, public.weights() / 2**20
        print(f"{name}: weights {mine:.1f} MiB, public way {theirs:.1f} MiB, {mine / theirs:.2f} of it")


def ridge():
    """Solve with the search of the penalty, and six LU solves."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(6000) % CLASSES
    centres = torch.randn(CLASSES, 64, generator=generator)
    features = centres[labels] + torch.randn(6000, 64, generator=generator)
    head = RidgeHead(64, CLASSES, WIDTH, penalties=PENALTIES)
    for rows in torch.arange(6000).split(500):
        head.update(features[rows], labels[rows])
    gram, cross = head.fit.gram.float(), head.fit.cross.float()
    eye = torch.eye(WIDTH)

    def lu():
        for penalty in PENALTIES:
            torch.linalg.solve(gram + penalty * eye, cross)

    compare(f"ridge, M = {WIDTH}: search and solve; six LU solves", head.solve, lu, rounds=2)


if __name__ == "__main__":
    print(f"{torch.get_num_threads()} threads\n{'':<58}{'ours':>11} {'other':>11} {'ratio':>10}")
    steps()
    ridge()
