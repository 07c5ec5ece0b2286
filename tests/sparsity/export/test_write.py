"""Exported files compute the masked model."""

import numpy as np
import pytest
import torch

from lightning_plasticity.sparsity.export import export_model
from lightning_plasticity.sparsity.export.reload import load_shrunk
from tests.sparsity.export.nets import CLOSE, RESIDUAL_GROUPS, Residual, filter_masks, images, masked, settle


@pytest.mark.parametrize("batch", [1, 4])
def test_onnx_file_computes_the_masked_model(tmp_path, batch):
    import onnxruntime
    from safetensors.torch import load_file

    model = settle(Residual()).train()
    masks = filter_masks(model, 0.5, RESIDUAL_GROUPS)
    report = export_model(model, tmp_path / "out", images(batch, 3, 12, 12), masks, repeats=1)
    x = images(3, 3, 12, 12, seed=9)
    expected = masked(model, masks)(x)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(logits, expected.detach(), rtol=1e-5, atol=1e-5)
    back = load_shrunk(Residual(), load_file(tmp_path / "out" / "model.safetensors"))
    torch.testing.assert_close(back(x), expected, **CLOSE)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert sizes == {path.name: size for path, size in report.files.items()}
    assert sizes.keys() == {"model.safetensors", "model.onnx"}
    assert sizes["model.safetensors"] < 0.5 * report.bytes_before
    assert "model.safetensors" in str(report)
    assert "latency, ms" in str(report)


def test_pt2_file_computes_the_masked_model(tmp_path):
    model = settle(Residual())
    masks = filter_masks(model, 0.7, RESIDUAL_GROUPS)
    export_model(model, tmp_path, images(2, 3, 12, 12), masks, format="pt2", repeats=1)
    x = images(5, 3, 12, 12, seed=9)
    program = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(program(x), masked(model, masks)(x), **CLOSE)
    with pytest.raises(ValueError, match="format='tflite' must be one of onnx, pt2"):
        export_model(model, tmp_path, x, format="tflite")
