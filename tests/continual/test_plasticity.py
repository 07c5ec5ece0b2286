"""EntropyController on SAFE: the fast adapter's rate follows how unsure the fast head is."""

import pytest
import torch

from lightning_plasticity.callbacks import EntropyController
from tests.continual.nets import Watch, fitted, safe, tensors

pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")


def test_the_adapters_rate_alone_is_steered():
    """At a constant w of one half: as with half the adapter's rate, in every session."""
    rates = {"lr": 0.08, "later_lr": 0.04, "head_lr": 0.02}
    steered, slower = safe(optimization=rates), safe(optimization=rates | {"lr": 0.04, "later_lr": 0.02})
    controller = EntropyController("module", floor=0.5, ceiling=0.5, groups=["adapter"])
    fitted(steered, callbacks=[controller])
    fitted(slower)
    for name, value in tensors(slower).items():
        torch.testing.assert_close(tensors(steered)[name], value, rtol=1e-4, atol=1e-4, msg=name)
    assert 0 < controller.entropy < 1


def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path):
    def controller():
        return EntropyController("module", floor=0.2, groups=["adapter"])

    def save(trainer, module):
        trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    whole, resumed, first, again = safe(), safe(), controller(), controller()
    fitted(whole, callbacks=[first, Watch(on_train_epoch_end=save)])
    fitted(resumed, callbacks=[again], ckpt_path=tmp_path / "1.ckpt")
    for name, value in tensors(whole).items():
        assert torch.equal(tensors(resumed)[name], value), name
    assert again.w == first.w < 1
