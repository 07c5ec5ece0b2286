"""Two processes of a strategy, started once for the tests of a file."""

import pytest

from tests.distributed.launch import run_two


@pytest.fixture(scope="module")
def folder(request, tmp_path_factory):
    """Where the two processes of the file's ``STRATEGY`` have left what they did."""
    path = tmp_path_factory.mktemp(request.module.STRATEGY)
    run_two("tests.distributed.worker", path, request.module.STRATEGY)
    return path
