"""Continual accuracies against matrices written by hand and a slow restatement in plain Python."""

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_plasticity.metrics import ContinualAccuracy


def fill(correct, total, metric=None):
    """Counts, as a metric that was told of each sample."""
    metric = metric or ContinualAccuracy(len(correct))
    for after, (right, all_) in enumerate(zip(correct, total, strict=True)):
        for session, (good, number) in enumerate(zip(right, all_, strict=True)):
            labels = torch.arange(number)
            answers = torch.where(torch.arange(number) < good, labels, labels + 1)
            metric.update(answers, labels, torch.full((number,), session), after)
    return metric


def numbers(metric):
    return {name: value.tolist() for name, value in metric.compute().items()}


# rows: after session 1, 2, 3; columns: samples of session 1, 2, 3, of which there are 10, 20 and 5
CORRECT = [[10, 0, 0], [6, 16, 0], [7, 10, 5]]
TOTAL = [[10, 0, 0], [10, 20, 0], [10, 20, 5]]


def test_a_matrix_written_by_hand():
    found = numbers(fill(CORRECT, TOTAL))
    nan = math.nan
    np.testing.assert_array_equal(found.pop("matrix"), [[1.0, nan, nan], [0.6, 0.8, nan], [0.7, 0.5, 1.0]])
    assert found == pytest.approx(
        {
            "final_micro": 22 / 35,
            "final_macro": (0.7 + 0.5 + 1.0) / 3,
            "average_incremental": (1.0 + 22 / 30 + 22 / 35) / 3,
            "forgetting": ((1.0 - 0.7) + (0.8 - 0.5)) / 2,
            "backward_transfer": ((0.7 - 1.0) + (0.5 - 0.8)) / 2,
        }
    )


def test_forgetting_takes_the_best_before_the_last_session_and_may_be_negative():
    # session 1: 0.2, then 0.5, at last 0.9; session 2: 0.6, at last 0.7
    found = numbers(fill([[2, 0, 0], [5, 6, 0], [9, 7, 10]], [[10, 0, 0], [10, 10, 0], [10, 10, 10]]))
    assert found["forgetting"] == pytest.approx(((0.5 - 0.9) + (0.6 - 0.7)) / 2)
    assert found["backward_transfer"] == pytest.approx(((0.9 - 0.2) + (0.7 - 0.6)) / 2)


def test_before_the_end_the_last_session_is_the_last_one_evaluated():
    found = numbers(fill([*CORRECT[:2], [0, 0, 0]], [*TOTAL[:2], [0, 0, 0]]))
    assert found["final_micro"] == pytest.approx(22 / 30)
    assert found["final_macro"] == pytest.approx(0.7)
    assert found["average_incremental"] == pytest.approx((1 + 22 / 30) / 2)
    assert found["forgetting"] == pytest.approx(0.4)


def test_of_one_session_nothing_can_be_forgotten():
    found = numbers(fill([[3]], [[4]]))
    assert (found["final_micro"], found["final_macro"], found["average_incremental"]) == (0.75, 0.75, 0.75)
    assert math.isnan(found["forgetting"])
    assert math.isnan(found["backward_transfer"])


def test_the_matrix_of_one_session_is_a_matrix():
    """From compute, from its cache, from forward and from a copy that was pickled; the rest is 0-d."""
    metric = fill([[3]], [[4]])
    batch = ContinualAccuracy(1).forward(torch.tensor([0, 1]), torch.tensor([0, 0]), 0, 0)
    assert batch["matrix"].tolist() == [[0.5]]
    for one in (metric, metric, pickle.loads(pickle.dumps(metric))):
        values = one.compute()
        assert values.pop("matrix").tolist() == [[0.75]]
        assert all(value.ndim == 0 for value in values.values())


def test_a_summary_without_its_evaluations_is_nan_and_the_others_are_not():
    only_last = numbers(fill([[0, 0], [5, 5]], [[0, 0], [10, 10]]))
    assert (only_last["final_micro"], only_last["final_macro"]) == (0.5, 0.5)
    assert all(
        math.isnan(only_last[name]) for name in ("average_incremental", "forgetting", "backward_transfer")
    )
    own_only = numbers(fill([[5, 0], [0, 5]], [[10, 0], [0, 10]]))
    assert all(math.isnan(own_only[name]) for name in own_only if name != "matrix")


def test_evaluations_of_later_sessions_enter_no_summary():
    ahead = numbers(fill([[5, 3], [5, 5]], [[10, 10], [10, 10]]))
    without = numbers(fill([[5, 0], [5, 5]], [[10, 0], [10, 10]]))
    assert ahead.pop("matrix")[0] == [0.5, 0.3]
    without.pop("matrix")
    assert ahead == without


def slow(samples, sessions):
    """The definitions, from a list of (after, session, right)."""
    shares = {}
    for after in range(sessions):
        for session in range(after + 1):
            rights = [right for a, s, right in samples if (a, s) == (after, session)]
            shares[after, session] = sum(rights) / len(rights)
    seen = [[right for a, s, right in samples if a == after and s <= a] for after in range(sessions)]
    curve, last = [sum(rights) / len(rights) for rights in seen], sessions - 1
    best = [max(shares[t, i] for t in range(i, last)) for i in range(last)]
    return {
        "final_micro": curve[-1],
        "final_macro": sum(shares[last, i] for i in range(sessions)) / sessions,
        "average_incremental": sum(curve) / sessions,
        "forgetting": sum(best[i] - shares[last, i] for i in range(last)) / last,
        "backward_transfer": sum(shares[last, i] - shares[i, i] for i in range(last)) / last,
    }


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 4), st.randoms(use_true_random=False))
def test_any_batches_in_any_order_from_any_process_give_the_definitions(sessions, random):
    samples = [
        (after, session, random.random() < 0.6)
        for after in range(sessions)
        for session in range(after + 1)
        for _ in range(random.randint(1, 5))
    ]
    order = random.sample(samples, len(samples))
    metrics = [ContinualAccuracy(sessions) for _ in range(2)]
    for number, (after, session, right) in enumerate(order):
        label = random.randint(0, 3)
        logits = torch.zeros(1, 5)
        logits[0, label if right else label + 1] = 1
        metrics[number % 2].update(logits, torch.tensor([label]), session, after)
    metrics[0].merge_state(metrics[1])  # by the states' reductions, as between processes
    found = numbers(metrics[0])
    found.pop("matrix")
    assert found == pytest.approx(slow(samples, sessions))


def test_logits_answer_with_their_largest_and_a_session_may_be_one_for_all():
    metric = ContinualAccuracy(2)
    metric.update(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]), sessions=0, after_session=0)
    assert metric.compute()["final_micro"] == 0.5


def test_reset_and_state_for_resuming(tmp_path):
    metric = fill(CORRECT, TOTAL)
    metric.persistent(True)
    torch.save(metric.state_dict(), tmp_path / "state.pt")
    again = ContinualAccuracy(3)
    again.persistent(True)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(again.total, metric.total)
    metric.reset()
    assert not metric.total.any()
    with (
        pytest.warns(UserWarning, match="called before the ``update``"),
        pytest.raises(ValueError, match="has counted nothing"),
    ):
        metric.compute()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([0], [0, 1], [0, 0], 0), r"have the shapes \[\(1,\), \(2,\), \(2,\)\]"),
        (([0], [0], [2], 0), r"sessions=\[2\] must be 0..1"),
        (([0], [0], [-1], 0), r"sessions=\[-1\] must be 0..1"),
        (([0], [0], [0], 2), "after_session=2 must be 0..1"),
    ],
)
def test_bad_input(arguments, words):
    *tensors, after = arguments
    with pytest.raises(ValueError, match=words):
        ContinualAccuracy(2).update(*map(torch.tensor, tensors), after)


def test_no_sessions():
    with pytest.raises(ValueError, match="num_sessions=0 must be 1 or more"):
        ContinualAccuracy(0)
