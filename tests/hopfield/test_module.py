import math

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from lightning_plasticity.callbacks import EntropyController, FigureLogger
from lightning_plasticity.callbacks.round_progress import RoundProgressBar
from lightning_plasticity.data import ArchetypeStream
from lightning_plasticity.data.federation import Clients, Exposure
from lightning_plasticity.hopfield import FederatedHopfield, FederationConfig, Memory, federate
from lightning_plasticity.hopfield.module import FederationRound

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")

CONFIG = FederationConfig(sketch_rank=24, max_clients=8, max_archetypes=16)
QUIET = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "num_sanity_val_steps": 0,
}


def trainer(**settings):
    return Trainer(accelerator="cpu", **{**QUIET, **settings})


def stream(rounds=6, **settings):
    clients = Clients(3, [30, 60, 90], supports=[[0, 1], [1, 2], [2, 3, 4]], attackers=["noise", "nan"])
    exposure = Exposure(novel=1, novel_from=3, ramp=1)
    given = {"num_archetypes": 5, "num_features": 150, "clients": clients, "exposure": exposure, **settings}
    return ArchetypeStream("synthetic", rounds=rounds, **given)


def model(**settings):
    return FederatedHopfield(150, CONFIG, **settings)


def flat(memory):
    """Everything in a memory, as one dictionary."""
    state = memory.state_dict()
    report = state.pop("report")
    return {**state, **{f"report.{name}": value for name, value in report.items()}}


def assert_equal_memories(one, two, tolerance=None):
    first, second = flat(one), flat(two)
    assert first.keys() == second.keys()
    for name, value in first.items():
        if not torch.is_tensor(value) and not isinstance(value, float):
            assert value == second[name], name
        elif tolerance is None:
            torch.testing.assert_close(value, second[name], rtol=0, atol=0, equal_nan=True, msg=name)
        elif name not in ("vectors", "eigenvalues"):  # a bulk's vectors may turn freely
            torch.testing.assert_close(
                value, second[name], rtol=tolerance, atol=tolerance, equal_nan=True, msg=name
            )


def by_hand(data, rounds, config=CONFIG):
    """The same federation without a Trainer."""
    memory = Memory.empty(data.num_features, config)
    for t in range(rounds):
        memory = federate([data.federation.examples(t, c) for c in range(data.num_clients)], memory, config)
    return memory


def test_a_fit_is_the_federation_round_by_round():
    learned, run = model(), trainer(max_epochs=6)
    run.fit(learned, stream())
    expected = by_hand(stream(), 6)
    assert_equal_memories(learned.memory, expected)
    assert len(expected.archetypes) == 5
    assert run.global_step == 6
    assert torch.equal(learned.evidence[:5], expected.evidence)
    assert not learned.evidence[5:].any()
    assert learned.trace.found == [4, 4, 4, 5, 5, 5] or learned.trace.found[-1] == 5
    assert set(learned.trace.rejected) == set(range(6))
    assert all(list(dropped) == [4] for dropped in learned.trace.rejected.values()), "the client with NaN"


class KeepMemory(Callback):
    """Leaves what each process has in a file."""

    def __init__(self, folder):
        self.folder = folder

    def on_fit_end(self, trainer, pl_module):
        state = {"memory": pl_module.memory.state_dict(), "step": trainer.global_step}
        torch.save(state, self.folder / f"{trainer.global_rank}.pt")


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """Five clients on two processes, one of which also hosts nobody."""
    one, two = model(), model()
    single = trainer(max_epochs=5)
    single.fit(one, stream())
    strategy = DDPStrategy(start_method="spawn", process_group_backend="gloo")
    double = trainer(max_epochs=5, devices=2, strategy=strategy, callbacks=[KeepMemory(tmp_path)])
    double.fit(two, stream())
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [state["step"] for state in states] == [5, 5]
    ranks = [Memory.from_state_dict(state["memory"]) for state in states]
    assert_equal_memories(*ranks)
    assert_equal_memories(two.memory, ranks[0])
    assert_equal_memories(one.memory, two.memory, tolerance=1e-9)
    count = one.memory.outliers
    torch.testing.assert_close(one.memory.eigenvalues[:count], two.memory.eigenvalues[:count])
    assert torch.equal(one.memory.archetypes, two.memory.archetypes)
    for name, value in single.callback_metrics.items():
        torch.testing.assert_close(value, double.callback_metrics[name], msg=name, equal_nan=True)


def test_resumed_equals_uninterrupted(tmp_path):
    def run(folder, **resume):
        learned = model()
        saver = ModelCheckpoint(tmp_path / folder, filename="{epoch}", save_top_k=-1)
        fit = trainer(max_epochs=6, callbacks=[saver], enable_checkpointing=True)
        fit.fit(learned, stream(), **resume)
        return learned, fit

    whole, first = run("whole")
    with pytest.warns(UserWarning, match="dirpath has changed"):
        resumed, second = run("resumed", ckpt_path=tmp_path / "whole" / "epoch=2.ckpt", weights_only=True)
    assert first.global_step == second.global_step == 6
    assert_equal_memories(whole.memory, resumed.memory)
    for name in ("found", "rejected", "overlap_rounds", "retrieval"):
        assert getattr(whole.trace, name) == getattr(resumed.trace, name)
    for name in ("plasticity", "entropy", "overlaps"):
        for a, b in zip(getattr(whole.trace, name), getattr(resumed.trace, name), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    loaded = FederatedHopfield.load_from_checkpoint(tmp_path / "whole" / "epoch=5.ckpt", weights_only=True)
    assert_equal_memories(whole.memory, loaded.memory)
    assert loaded.config == CONFIG


def test_a_given_plasticity_holds_from_the_next_round_on_and_is_saved():
    class Steer(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            pl_module.set_plasticity(0.3 if trainer.current_epoch < 2 else None)

    learned = model()
    trainer(max_epochs=4, callbacks=[Steer()]).fit(learned, stream())
    first, second, third, fourth = (row[[0, 1, 2]].tolist() for row in learned.trace.plasticity)
    assert first == [1.0] * 3
    assert second == third == [0.3] * 3
    assert min(fourth) != 0.3
    state = learned.state_dict()
    learned.set_plasticity(0.7)
    other = model()
    other.load_state_dict(learned.state_dict())
    assert other._plasticity == 0.7
    other.load_state_dict(state)
    assert other._plasticity is None
    for bad in (-0.1, 1.1):
        with pytest.raises(ValueError, match="w="):
            learned.set_plasticity(bad)
        with pytest.raises(ValueError, match="plasticity"):
            model(plasticity=bad)
    assert model(plasticity=0.2)._plasticity == 0.2


def test_entropy_is_that_of_the_clients_that_took_part():
    learned = model()
    assert learned.plasticity_entropy.isnan()
    trainer(max_epochs=4).fit(learned, stream())
    novelty = learned.memory.report.novelty[:4].numpy()  # the fourth sends noise, and has no novelty
    p = np.clip(1 - novelty / 2, 1e-300, 1 - 1e-16)
    expected = float(np.mean(-p * np.log2(p) - (1 - p) * np.log2(1 - p)))
    assert learned.plasticity_entropy.ndim == 0
    assert float(learned.plasticity_entropy) == pytest.approx(expected, abs=1e-9)
    assert expected > 0.01, "round 3 brings a new archetype"


def test_rounds_without_anybody_change_nothing():
    clients = Clients(2, 40, leaving={0: 2, 1: 2})
    data = ArchetypeStream("synthetic", num_archetypes=2, num_features=150, rounds=5, clients=clients)
    learned = model()
    trainer(max_epochs=5).fit(learned, data)
    before = by_hand(data, 2)
    assert learned.memory.round == 5
    assert torch.equal(learned.memory.archetypes, before.archetypes)
    assert torch.equal(learned.memory.vectors, before.vectors)
    assert learned.plasticity_entropy.isnan()
    assert learned.trace.plasticity[4].isnan().all()


class Batches(torch.utils.data.Dataset):
    def __init__(self, *batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def loader(*batches):
    return DataLoader(Batches(*batches), batch_size=None)


def patterns(seed=0, copies=60):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.where(torch.rand(2, 150, generator=generator) < 0.5, -1.0, 1.0)
    flips = torch.where(torch.rand(copies, 150, generator=generator) < 0.1, -1.0, 1.0)
    return truth, truth.repeat(copies // 2, 1) * flips


def test_plain_batches_are_clients_and_batches_of_one_client_are_joined():
    truth, x = patterns()
    plain, joined = model(), model()
    trainer(max_epochs=1).fit(plain, loader(x[:30], x[30:]))
    expected = federate([x[:30], x[30:]], config=CONFIG)
    assert_equal_memories(plain.memory, expected)
    parts = [(x[:10], 0), (x[30:], 1), (x[10:30], 0), (x[:0], -1)]
    trainer(max_epochs=1).fit(joined, loader(*parts))
    assert_equal_memories(joined.memory, expected)
    assert float((joined.memory.archetypes.float() @ truth.T / 150).abs().amax(0).min()) > 0.95
    cues = truth * torch.where(torch.arange(150) % 7 == 0, -1.0, 1.0)
    predicted = trainer().predict(joined, DataLoader(cues, batch_size=2))
    torch.testing.assert_close(torch.cat(predicted), truth)


def test_data_that_do_not_fit_are_dropped_and_reported():
    _, x = patterns()
    learned = model()
    wrong = [(x, 0), (x[:, :9], 1), (x * 2, 2), (x[:4], 3), (x[:4, :5], 3)]
    trainer(max_epochs=1).fit(learned, loader(*wrong))
    dropped = learned.trace.rejected[0]
    assert sorted(dropped) == [1, 2, 3]
    assert "N columns" in dropped[1]
    assert "not all +1 or -1" in dropped[2]
    assert "N columns" in dropped[3]
    assert len(learned.memory.archetypes) == 2


def test_max_steps_counts_rounds():
    run, learned = trainer(max_steps=3, max_epochs=-1), model()
    run.fit(learned, stream())
    assert (run.global_step, learned.memory.round) == (3, 3)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_the_trainers_precision_does_not_touch_the_memory(precision):
    plain, other = model(), model()
    trainer(max_epochs=2).fit(plain, stream())
    trainer(max_epochs=2, precision=precision).fit(other, stream())
    assert_equal_memories(plain.memory, other.memory)


def test_scores_are_those_of_the_memory_and_the_cues():
    data, learned = stream(rounds=4), model()
    run = trainer(max_epochs=4)
    run.fit(learned, data)
    found, truth = learned.memory.archetypes.numpy().astype(float), data.federation.start.numpy()
    overlap = np.abs(found @ truth.T).max(0) / 150
    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    assert logged["hopfield/val_overlap"] == pytest.approx(overlap.mean(), abs=1e-6)
    assert logged["hopfield/val_overlap_min"] == pytest.approx(overlap.min(), abs=1e-6)
    assert logged["hopfield/val_found"] == (overlap >= 0.9).sum()
    assert logged["hopfield/val_spurious"] == len(found) - (overlap >= 0.9).sum()
    cues = data.federation.cues(3)
    states = learned(cues.cues)
    share = float(((states * cues.originals).mean(1) >= 0.95).double().mean())
    assert logged["hopfield/val_retrieval"] == pytest.approx(share)
    assert share > 0.9
    assert logged["hopfield/archetypes"] == len(found)
    assert 0 < logged["hopfield/edge"] < 1
    assert logged["hopfield/clients"] == 4
    assert logged["hopfield/rejected"] == 1
    assert 0 < logged["plasticity/weight"] < 1
    assert math.isfinite(logged["plasticity/entropy"])
    assert torch.stack(learned.trace.overlaps[:3]).shape == (3, 4), "the novel one is not compared before"
    assert len(learned.trace.overlaps[3]) == 5
    tested = run.test(learned, data, verbose=False)[0]
    assert tested["hopfield/test_overlap"] == pytest.approx(overlap.mean(), abs=1e-6)


def test_a_fit_that_validates_every_other_round_knows_which():
    learned = model()
    trainer(max_epochs=4, check_val_every_n_epoch=2, num_sanity_val_steps=2).fit(learned, stream())
    assert learned.trace.overlap_rounds == [1, 3]


def test_figures_are_written(tmp_path):
    learned, logger = model(image_shape=(10, 15)), CSVLogger(tmp_path)
    run = trainer(max_epochs=3, logger=logger, callbacks=[FigureLogger()], log_every_n_steps=1)
    run.fit(learned, stream())
    figures = {path.stem for path in (tmp_path / "lightning_logs" / "version_0" / "figures").glob("*.png")}
    assert figures == {"spectrum", "archetypes", "magnetisation", "plasticity"}
    rows = np.genfromtxt(
        tmp_path / "lightning_logs" / "version_0" / "metrics.csv", delimiter=",", names=True, deletechars=""
    )
    assert set(rows["hopfield/archetypes"][~np.isnan(rows["hopfield/archetypes"])]) <= {4.0, 5.0, 3.0}


def test_the_bar_shows_rounds(capfd):
    run = trainer(max_epochs=3, enable_progress_bar=True, callbacks=[RoundProgressBar()])
    run.fit(model(), stream())
    shown = capfd.readouterr().out.replace("\r", "\n").splitlines()
    last = [line for line in shown if line.startswith("Round")][-1]
    assert "3/3" in last
    assert "hopfield/archetypes=" in last
    assert not [line for line in shown if line.startswith("Validation")]


def test_what_does_not_fit_is_refused_at_the_start():
    with pytest.raises(ValueError, match="image_shape"):
        model(image_shape=(3, 3))
    with pytest.raises(MisconfigurationException, match="max_clients=2"):
        trainer(max_epochs=1).fit(FederatedHopfield(150, FederationConfig(max_clients=2)), stream())
    with pytest.raises(MisconfigurationException, match="num_features=9"):
        trainer(max_epochs=1).fit(FederatedHopfield(9, CONFIG), stream())
    other = FederatedHopfield(150, FederationConfig(max_clients=9, max_archetypes=16))
    with pytest.raises(ValueError, match="max_clients=9"):
        other.load_state_dict(model().state_dict())
    with pytest.raises(ValueError, match="closure"):
        FederationRound([torch.nn.Parameter(torch.zeros(1))]).step()


def test_a_client_too_many_is_left_out_with_a_warning():
    """An error on the process that hosts it would leave the others waiting."""
    examples = stream().federation.examples(0, 0)
    alone, crowded = model(), model()
    trainer(max_epochs=1).fit(alone, loader((examples, 0)))
    with pytest.warns(UserWarning, match="client 8 is left out: config.max_clients=8"):
        trainer(max_epochs=1).fit(crowded, loader((examples, 0), (torch.ones(3, 150), 8)))
    assert_equal_memories(alone.memory, crowded.memory)


def test_the_entropy_controller_steers_the_federation():
    controller = EntropyController(signal="module", effect="module", floor=0.2, ceiling=0.8, smoothing=0.0)
    learned = model()
    trainer(max_epochs=6, callbacks=[controller]).fit(learned, stream())
    given = torch.stack(learned.trace.plasticity)[:, :3]
    entropy = torch.stack(learned.trace.entropy).nanmean(1)
    assert entropy.max() > 0.01, "round 3 brings a new archetype"
    assert (given == given[:, :1]).all(), "the same for all clients"
    for t in range(1, 6):
        assert float(given[t, 0]) == pytest.approx(0.2 + 0.6 * float(entropy[t - 1]), abs=1e-6)
