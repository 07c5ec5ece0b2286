"""Every example in a docstring runs and gives what it says."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import lightning_plasticity

PACKAGE = Path(lightning_plasticity.__file__).parent


def modules_with_examples():
    """Dotted names of the package's modules that have a docstring example."""
    paths = sorted(path for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text())
    parts = [path.relative_to(PACKAGE.parent).with_suffix("").parts for path in paths]
    return [".".join(part for part in names if part != "__init__") for names in parts]


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples(name):
    # By name: pytest's own collection of doctests imports a file a second time, with other classes in it.
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    results = doctest.testmod(import_module(name), optionflags=flags)
    assert results.attempted > 0
    assert results.failed == 0
