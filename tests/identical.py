"""Equal to the last bit, through all containers."""

import torch


def assert_identical(one, other, where="run"):
    """Equal to the last bit, through all containers."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key, value in one.items():
            assert_identical(value, other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_identical(a, b, f"{where}[{index}]")
    else:
        assert one == other, where
