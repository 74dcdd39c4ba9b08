"""A small real pool for all: the toy world, ingested by the real stage. Tests copy what they change."""

import os

# Before torch is imported, here and in the processes that tests start: the networks of the tests are small, and two
# threads that wait for each other beside busy neighbors are many times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines import ingest, toy


@dataclass(frozen=True)
class World:
    """Folders of a toy world: `crawl`, `seed`, `test`, `truth.parquet`, and the `pool` ingested from it."""

    root: Path

    @property
    def pool(self) -> Path:
        return self.root / "pool"

    @property
    def seed(self) -> Path:
        return self.root / "seed"

    @property
    def test(self) -> Path:
        return self.root / "test"

    @property
    def truth(self) -> Path:
        return self.root / "truth.parquet"


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    toy.make(root, num_real=600, alpha=0.5, labels_per_class=8, num_test=50)
    ingest.run(ingest.IngestConfig(sources=(str(root / "crawl"),), pool=root / "pool", jobs=1))
    return World(root)
