"""A working directory as `curate score` leaves it, for the commands that follow."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.curate.reviewing import Server, review


@pytest.fixture(scope="session")
def scored(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds pool/ and run/, to which the tests of the commands add files."""
    return shutil.copytree(untrained, tmp_path_factory.mktemp("home") / "scored")


@pytest.fixture
def home(scored: Path, tmp_path: Path) -> Path:
    """The scored pool, and a run of one's own to write marks to."""
    shutil.copytree(scored / "run", tmp_path / "run")
    (tmp_path / "pool").symlink_to(scored / "pool")
    return tmp_path


@pytest.fixture(scope="module")
def served(scored: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests that only look, or take back what they mark."""
    home = tmp_path_factory.mktemp("served")
    shutil.copytree(scored / "run", home / "run")
    (home / "pool").symlink_to(scored / "pool")
    with review(home) as server:
        yield server
