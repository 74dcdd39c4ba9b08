"""A working directory as it is after `curate score`, for the commands that come then."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def scored(newborn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds pool/ and run/, which these tests add files to."""
    return shutil.copytree(newborn, tmp_path_factory.mktemp("home") / "scored")
