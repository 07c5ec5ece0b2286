"""2:4 masks to the kernels of NVIDIA GPUs: checks that need none, and the kernels where there is one."""

import copy

import pytest
import torch
from torch import Tensor, nn

from lightning_plasticity.sparsity.export import semi_structured
from lightning_plasticity.sparsity.export.semi_structured import to_semi_structured
from tests.sparsity.export.nets import images, masked


def two_of_four(rows: int, columns: int) -> Tensor:
    scores = torch.rand(rows, columns // 4, 4, generator=torch.Generator().manual_seed(0))
    return (scores.argsort(-1).argsort(-1) < 2).view(rows, columns)


def test_semi_structured_refuses_what_the_kernels_cannot_do():
    model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)).half()
    good = two_of_four(64, 128)
    with pytest.raises(ValueError, match="none belongs to a linear layer"):
        to_semi_structured(model, {})
    dense = good.clone()
    dense[0, :4] = True
    with pytest.raises(ValueError, match=r"masks\['0.weight'\] is not 2:4: 1 of 2048 groups"):
        to_semi_structured(model, {"0.weight": dense})
    with pytest.raises(ValueError, match="has no groups of 4"):
        to_semi_structured(nn.Sequential(nn.Linear(6, 4)), {"0.weight": torch.ones(4, 6, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"is torch.float32.*model.to\(torch.bfloat16\)"):
        to_semi_structured(copy.deepcopy(model).float(), {"0.weight": good})
    with pytest.raises(ValueError, match=r"weights are on 'cpu'.*\.cuda\(\)"):
        to_semi_structured(model, {"0.weight": good})


@pytest.mark.parametrize(("capability", "cusparselt"), [((7, 5), True), ((9, 0), False)])
def test_semi_structured_names_the_capability(monkeypatch, capability, cusparselt):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: cusparselt)
    with pytest.raises(ValueError, match=rf"capability {capability[0]}\.{capability[1]}.*bake\(\)"):
        semi_structured._backend(torch.device("cuda"))


def test_semi_structured_converts_masked_linear_layers_and_no_others(monkeypatch):
    """The kernels need a GPU; here the part that is ours: which layers are handed over, and how."""

    class Recorder(torch.sparse.SparseSemiStructuredTensorCUTLASS):
        seen: list[Tensor] = []  # noqa: RUF012

        @classmethod
        def from_dense(cls, weight, *_):
            cls.seen.append(weight)
            return weight

    monkeypatch.setattr(semi_structured, "_backend", lambda device: Recorder)
    model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)).half()
    masks = {"0.weight": two_of_four(64, 128)}
    fast = to_semi_structured(model, masks)
    assert len(Recorder.seen) == 1
    assert torch.equal(Recorder.seen[0], model[0].weight * masks["0.weight"])
    assert not fast[0].weight.requires_grad
    assert torch.equal(fast[2].weight, model[2].weight)
    assert not fast.training
    with pytest.raises(ValueError, match=r"layer '2' has 10 outputs and 64 inputs.*multiples of 32 and 64"):
        to_semi_structured(model, {"2.weight": two_of_four(10, 64)})


if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0):

    @pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor is in prototype stage")
    def test_semi_structured_kernels_compute_the_masked_model():
        model = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 64)).half().cuda()
        masks = {"0.weight": two_of_four(128, 256).cuda(), "2.weight": two_of_four(64, 128).cuda()}
        x = images(64, 256).half().cuda()
        with torch.inference_mode():
            torch.testing.assert_close(
                to_semi_structured(model, masks)(x), masked(model, masks)(x), rtol=1e-2, atol=1e-2
            )
