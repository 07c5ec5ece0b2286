"""The ridge head against NumPy's solution on all samples at once, its sums and its search of the penalty."""

import numpy as np
import pytest
import torch

from lightning_plasticity.continual import CosineHead, RidgeHead
from lightning_plasticity.continual.ridge import _refined, choose_penalty, solve_ridge
from lightning_plasticity.continual.statistics import RidgeStatistics


def samples(n=300, width=6, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    centres = torch.randn(classes, width, generator=generator)
    return centres[labels] + 0.7 * torch.randn(n, width, generator=generator), labels


def joint(head, features, labels, penalty):
    """Ridge regression onto one-hot labels, on all samples, in float64."""
    h = np.maximum(features.double().numpy() @ head.projection.double().numpy(), 0)
    y = np.eye(head.weight.shape[1])[labels.numpy()]
    return np.linalg.solve(h.T @ h + penalty * np.eye(h.shape[1]), h.T @ y)


def test_sessions_one_after_another_equal_all_at_once():
    features, labels = samples()
    head = RidgeHead(6, 4, random_features=50)
    for session in ((0, 1), (2,), (3,)):
        for chosen in (torch.isin(labels, torch.tensor(session))).nonzero().flatten().split(17):
            head.update(features[chosen], labels[chosen])
        head.solve()
    expected = joint(head, features, labels, float(head.penalty))
    np.testing.assert_allclose(head.weight.numpy(), expected, atol=1e-5)
    once = RidgeHead(6, 4, random_features=50)
    once.update(features, labels)
    once.solve()
    assert once.penalty == head.penalty  # the same samples choose it, whatever the sessions
    torch.testing.assert_close(once(features), head(features), rtol=0, atol=1e-5)
    assert (head(features).argmax(1) == labels).float().mean() > 0.8


def test_the_order_of_batches_does_not_matter_to_the_sums():
    features, labels = samples()
    heads = [RidgeHead(6, 4, random_features=20) for _ in range(2)]
    held = torch.arange(len(labels)) % 3 == 0
    for head, order in zip(heads, (torch.arange(300), torch.randperm(300)), strict=True):
        for batch in order.split(32):
            head.update(features[batch], labels[batch], held[batch])
    for name, one in heads[0].state_dict().items():
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(one, heads[1].state_dict()[name], rtol=1e-4, atol=1e-5)


def test_squared_error_from_sums():
    features, labels = samples(50)
    head = RidgeHead(6, 4, random_features=20)
    head.update(features, labels, torch.zeros(50, dtype=torch.bool))
    weight = torch.randn(20, 4)
    residual = torch.nn.functional.one_hot(labels, 4) - head.expand(features) @ weight
    assert float(head.fit.squared_error(weight)) == pytest.approx(float(residual.square().sum()), rel=1e-4)


def test_every_fifth_sample_of_a_class_is_held_out_whatever_the_batches():
    features, labels = samples(203)
    head = RidgeHead(6, 4, random_features=5)
    for batch in torch.arange(203).split(10):
        head.update(features[batch], labels[batch])
    counts = torch.bincount(labels, minlength=4)
    assert head.held.counts.tolist() == (counts // 5).tolist()
    assert head.counts.tolist() == counts.tolist()


def test_the_penalty_is_the_best_on_held_out_samples():
    """Compared with the error on the samples themselves."""
    features, labels = samples(120)
    head = RidgeHead(6, 4, random_features=40, penalties=(1e-6, 1e-2, 1.0, 100.0))
    held = torch.arange(120) % 4 == 0
    head.update(features, labels, held)
    errors = []
    for penalty in head.penalties:
        weight = joint(head, features[~held], labels[~held], penalty)
        h = np.maximum(features[held].double().numpy() @ head.projection.double().numpy(), 0)
        errors.append(((np.eye(4)[labels[held].numpy()] - h @ weight) ** 2).sum())
    assert choose_penalty(head.fit, head.held, head.penalties) == head.penalties[int(np.argmin(errors))]


def test_the_search_on_half_of_the_features_finds_the_same_penalty():
    features, labels = samples(600, width=20)
    head = RidgeHead(20, 4, random_features=1200, penalties=(1e-4, 1e-2, 1.0, 100.0, 1e4))
    head.update(features, labels)
    errors = [
        float(head.held.squared_error(solve_ridge(head.fit.gram, head.fit.cross, p))) for p in head.penalties
    ]
    assert choose_penalty(head.fit, head.held, head.penalties) == head.penalties[int(np.argmin(errors))]


@pytest.mark.parametrize("penalty", [1e-5, 1e-4, 1.0])
def test_a_large_system_is_solved_to_double_precision(penalty):
    """Factored in single precision and refined; where that does not converge, in double precision."""
    h = torch.rand(400, 1100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gram, cross = h.T @ h, h.T @ torch.eye(4, dtype=torch.float64)[torch.arange(400) % 4]
    cross = torch.cat([cross, torch.zeros(1100, 1, dtype=torch.float64)], 1)  # a class not seen yet
    expected = np.linalg.solve(gram.numpy() + penalty * np.eye(1100), cross.numpy())
    assert np.abs(solve_ridge(gram, cross, penalty).numpy() - expected).max() < 1e-5 * np.abs(expected).max()
    converges = _refined(gram, cross, penalty) is not None
    assert converges == (penalty >= 1.0)


def test_an_indefinite_matrix_is_mended_or_refused():
    nearly = torch.ones(3, 3) - 1e-6 * torch.eye(3)  # by rounding
    assert solve_ridge(nearly, torch.ones(3, 1), 1e-7).isfinite().all()
    with pytest.raises(ValueError, match="not positive definite"):
        solve_ridge(torch.full((3, 3), torch.nan), torch.ones(3, 1), 1.0)


def test_autocast_reaches_neither_sums_nor_solution():
    """Sums in float32, as they are with many random features: their solution does not bear bfloat16."""
    features, labels = samples()
    answers = []
    for enabled in (False, True):
        head = RidgeHead(6, 4, random_features=50, penalties=(1e-4, 1e-2, 1.0), dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            head.update(features, labels)
            head.solve()
            errors = head.held.squared_error(head.weight)
            answers.append((head(features), head.weight, head.penalty, errors))
    for one, other in zip(*answers, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


def test_a_compact_state():
    features, labels = samples()
    head = RidgeHead(6, 4, random_features=50, seed=3)
    head.update(features, labels)
    head.solve()
    state = head.state_dict()
    assert "projection" not in state
    assert state["fit.gram"].shape == (50 * 51 // 2,)
    other = RidgeHead(6, 4, random_features=50, seed=4)
    other.load_state_dict(state)
    assert torch.equal(other(features), head(features))
    torch.testing.assert_close(other.fit.gram, head.fit.gram, rtol=1e-6, atol=1e-6)
    with pytest.raises(RuntimeError, match=r"fit\.gram"):
        RidgeHead(6, 4, random_features=49).load_state_dict(state)


def test_unseen_classes_stay_zero():
    features, labels = samples(classes=2)
    head = RidgeHead(6, 5, random_features=30)
    head.update(features, labels)
    head.solve()
    assert not head.weight[:, 2:].any()
    assert head(features, 2).shape == (300, 2)


def test_cosine_head_knows_directions_alone():
    head = CosineHead(4, 3, scale=7.0)
    head.set_rows(0, torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(head(3 * x), head(x))
    assert head(x, 2).shape == (5, 2)
    assert float(head(head.weight).detach().diagonal().mean()) == pytest.approx(7.0, rel=1e-6)


def test_zero_rows_explode_and_mean_rows_do_not():
    """The first gradient of the authors' start, and of ours."""
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    norms = {}
    for start in ("zeros", "mean"):
        head = CosineHead(4, 2)
        head.set_rows(
            0, torch.zeros(2, 4) if start == "zeros" else torch.nn.functional.normalize(x[:2], dim=1)
        )
        torch.nn.functional.cross_entropy(head(x), torch.arange(8) % 2).backward()
        norms[start] = float(head.weight.grad.norm())
    assert norms["zeros"] > 1e10
    assert norms["mean"] < 10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RidgeHead(0, 4), "in_features=0"),
        (lambda: RidgeHead(4, 4, 0), "random_features=0"),
        (lambda: RidgeHead(4, 4, 8, penalties=(0.0, 1.0)), "penalties"),
        (lambda: RidgeHead(4, 4, 8).update(torch.ones(2, 5), torch.tensor([0, 1])), r"\[B, 4\]"),
        (lambda: RidgeHead(4, 4, 8).update(torch.ones(2, 4), torch.tensor([0, 4])), "num_classes=4"),
        (lambda: RidgeHead(4, 4, 8).update(torch.ones(2, 4), torch.tensor([0])), r"B = 2"),
        (
            lambda: RidgeHead(4, 4, 8).update(torch.tensor([[1.0, torch.inf, 0, 0]]), torch.tensor([0])),
            "not finite",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_statistics_add_up():
    sums = [RidgeStatistics(3, 2) for _ in range(2)]
    h, y = torch.rand(4, 3), torch.tensor([0, 1, 1, 0])
    sums[0].add(h, y)
    sums[1].add(h[:1], y[:1])
    other = RidgeStatistics(3, 2)
    other.add(h[1:], y[1:])
    sums[1].merge(other)
    torch.testing.assert_close(sums[0].gram, sums[1].gram)
    torch.testing.assert_close(sums[0].cross, sums[1].cross)
    assert sums[0].size == sums[1].size == 4
