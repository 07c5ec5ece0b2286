"""Two processes equal one: losses over the whole batch, sums counted once, the same heads everywhere."""

import pytest
import torch

from tests.continual.worker import learn
from tests.distributed.launch import results, run_two

pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")


def run_pair(folder, backbone):
    run_two("tests.continual.worker", folder, backbone)
    return results(folder, backbone)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    alone, pair = learn("conv", 1), run_pair(tmp_path, "conv")
    for name, value in alone.items():
        assert torch.equal(pair[0][name], pair[1][name]), name
        if name.endswith((".correct", ".total", "counts")):
            assert torch.equal(pair[0][name], value), name
        elif name.endswith("ridge.weight"):  # a small penalty magnifies rounding
            assert (pair[0][name] - value).norm() < 0.05 * value.norm(), name
        else:
            torch.testing.assert_close(pair[0][name], value, rtol=1e-3, atol=1e-3, msg=name)
