"""Compiled models, fused and foreach optimizers, and memory that stays in place as CUDA graphs need it."""

from functools import partial

import lightning.pytorch as L
import pytest
import torch
from torch._dynamo.utils import counters

from lightning_plasticity.callbacks import SET, GraNet, RigL
from tests.trainer.modules import ConvNet, TwoPlayers, adamw, loader, make_trainer, sgd

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
METHODS = {
    "granet": lambda: GraNet(0.8, update_every=3, prune_until=8),
    "rigl": lambda: RigL(0.6, update_every=3),
    "set": lambda: SET(0.6, update_every=3),
    "filters": lambda: GraNet(0.5, update_every=3, prune_until=8, granularity="filter"),
    "2:4": lambda: GraNet(0.5, update_every=3, prune_until=8, granularity="2:4", include=["conv2", "conv3"]),
}
STEPS = 16


class Backend:
    """Runs graphs as they are and remembers after how many optimizer steps each was compiled."""

    def __init__(self):
        self.trainer, self.compiled_at = None, []

    def __call__(self, graph, inputs):
        self.compiled_at.append(self.trainer.global_step)
        return graph.forward


def whole(module, backend):
    """As Lightning's documentation does it."""
    return torch.compile(module, backend=backend)


def in_place(module, backend):
    """Keeps the names of parameters."""
    module.compile(backend=backend)
    return module


def layer(module, backend):
    """One layer only; its parameters get another name."""
    module.conv1 = torch.compile(module.conv1, backend=backend)
    return module


def plain(name):
    """A parameter's name in the net that is not compiled."""
    return name.replace("_orig_mod.", "")


def fit(module, callbacks, steps=STEPS, **options):
    """Train for some optimizer steps."""
    trainer = make_trainer(callbacks, max_steps=steps, max_epochs=-1, **options)
    trainer.fit(module, loader())
    return trainer


def compiled(compile_with, callbacks):
    """Train a compiled net; what was compiled when, and how many graphs broke."""
    torch.compiler.reset()
    counters.clear()
    backend = Backend()
    module = compile_with(ConvNet(adamw), backend)
    backend.trainer = trainer = make_trainer(callbacks, max_steps=STEPS, max_epochs=-1)
    trainer.fit(module, loader())
    return module, backend.compiled_at, sum(counters["graph_break"].values())


@pytest.mark.parametrize("compile_with", [whole, in_place, layer])
@pytest.mark.parametrize("method", ["granet", "filters"])
def test_compiled_models(compile_with, method):
    """No graph more than without us, none broken, none compiled after the first step; the same training."""
    sparse, eager = METHODS[method](), METHODS[method]()
    _, wanted, breaks = compiled(compile_with, [])
    module, compiled_at, broken = compiled(compile_with, [sparse])
    assert compiled_at == wanted
    assert set(compiled_at) == {0}
    assert broken == breaks
    reference = ConvNet(adamw)
    fit(reference, [eager])
    weights = {plain(name): p for name, p in module.named_parameters()}
    masks = {plain(name): mask for name, mask in sparse.masks.items()}
    assert masks.keys() == eager.masks.keys()
    for name, mask in masks.items():
        assert torch.equal(mask, eager.masks[name])
        torch.testing.assert_close(weights[name], reference.get_parameter(name), rtol=0, atol=1e-6)
        assert not weights[name][~mask].any()


def test_the_check_of_recompiles_can_fail():
    """Work that changes what a graph was compiled for is seen."""

    class Freeze(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 5:
                pl_module.conv1.weight.requires_grad_(False)

    _, compiled_at, _ = compiled(whole, [Freeze()])
    assert set(compiled_at) == {0, 5}


class Addresses(L.Callback):
    """Where weights, masks and optimizer state lie in memory, after every step."""

    def __init__(self, sparse):
        self.sparse, self.seen, self.masks = sparse, [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        tensors = {name: p for name, p in pl_module.named_parameters()}
        for name, p in list(tensors.items()):
            for optimizer in trainer.optimizers:
                for key, value in optimizer.state.get(p, {}).items():
                    if isinstance(value, torch.Tensor):
                        tensors[f"{name}/{key}"] = value
        tensors |= {f"{name}/mask": mask for name, mask in self.sparse.masks.items()}
        self.seen.append({name: t.data_ptr() for name, t in tensors.items()})
        self.masks.append({name: mask.clone() for name, mask in self.sparse.masks.items()})


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("make", [sgd, adamw, partial(torch.optim.Adam, lr=0.01, fused=True)])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_moves_in_memory(method, make, device):
    sparse = METHODS[method]()
    addresses = Addresses(sparse)
    fit(ConvNet(make), [sparse, addresses], accelerator=device, devices=1)
    assert len(addresses.seen) == STEPS
    assert all(seen == addresses.seen[0] for seen in addresses.seen)
    assert any("/" in name and "mask" not in name for name in addresses.seen[0])
    assert any(not torch.equal(addresses.masks[0][name], mask) for name, mask in sparse.masks.items())


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("method", METHODS)
def test_fused_and_foreach_optimizers_rewire_alike(method, make):
    """In double precision, where only rounding tells the three ways of stepping apart."""

    class Double(ConvNet):
        def __init__(self, optimizer):
            super().__init__(optimizer)
            self.double()

        def forward(self, images):
            return super().forward(images.double())

    runs = []
    for way in ({"foreach": False}, {"foreach": True}, {"fused": True}):
        module, sparse = (
            Double(partial(make, lr=0.05 if make is torch.optim.SGD else 0.01, **way)),
            METHODS[method](),
        )
        fit(module, [sparse])
        runs.append((module, sparse))
    for module, sparse in runs[1:]:
        assert sparse._engines[0][1].history == runs[0][1]._engines[0][1].history
        for name, mask in runs[0][1].masks.items():
            assert torch.equal(sparse.masks[name], mask)
            torch.testing.assert_close(
                module.get_parameter(name), runs[0][0].get_parameter(name), rtol=0, atol=1e-9
            )
            assert not module.get_parameter(name)[~mask].any()


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("method", METHODS)
def test_clipping_leaves_counts_exact_and_masked_weights_zero(method, algorithm):
    """Clipping by value makes gradients tie."""
    module, sparse, plain = ConvNet(adamw), METHODS[method](), METHODS[method]()
    fit(module, [sparse], gradient_clip_val=1e-3, gradient_clip_algorithm=algorithm)
    fit(ConvNet(adamw), [plain])
    assert sparse._engines[0][1].density == plain._engines[0][1].density
    assert [step for step, _ in sparse._engines[0][1].history] == [s for s, _ in plain._engines[0][1].history]
    for name, mask in sparse.masks.items():
        assert not module.get_parameter(name)[~mask].any()


class Adversaries(TwoPlayers):
    """Two optimizers that are toggled and accumulate over two batches, as generative adversaries do."""

    def training_step(self, batch, batch_idx):
        for player, optimizer in zip((self.first, self.second), self.optimizers(), strict=True):
            self.toggle_optimizer(optimizer)
            loss = torch.nn.functional.cross_entropy(player(batch[0].flatten(1)), batch[1])
            self.manual_backward(loss / 2)
            if batch_idx % 2:
                optimizer.step()
                optimizer.zero_grad()
            self.untoggle_optimizer(optimizer)


def test_several_toggled_optimizers_under_manual_optimization():
    module, sparse = Adversaries(adamw), RigL(0.6, update_every=2, total_steps=8)
    trainer = make_trainer([sparse], max_epochs=4)
    trainer.fit(module, loader())
    assert trainer.global_step == 16
    assert [engine.step for _, engine in sparse._engines] == [8, 8]
    assert [[step for step, _ in engine.history] for _, engine in sparse._engines] == [[0, 2, 4]] * 2
    for name, mask in sparse.masks.items():
        assert not module.get_parameter(name)[~mask].any()


def test_a_raw_optimizer_that_goes_past_lightning_fails_loudly():
    """Its step tells no callback, so growth would have nothing to read."""

    class Raw(TwoPlayers):
        def training_step(self, batch, batch_idx):
            for player, optimizer in zip((self.first, self.second), self.optimizers(False), strict=True):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(player(batch[0].flatten(1)), batch[1]).backward()
                optimizer.step()

    trainer = make_trainer([RigL(0.6, update_every=3, total_steps=8)], max_epochs=4)
    with pytest.raises(RuntimeError, match=r"step 3 ends in an update, but before_step\(\) was not called"):
        trainer.fit(Raw(), loader())
