"""A working directory as `curate score` leaves it, for the commands that follow."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def scored(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds pool/ and run/, to which the tests of the commands add files."""
    return shutil.copytree(untrained, tmp_path_factory.mktemp("home") / "scored")
