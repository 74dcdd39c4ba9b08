import tarfile
from pathlib import Path

import pytest

from pipelines import benchmark
from pipelines.pool.manifest import read_parquet
from tests.conftest import World
from tests.pipelines.benchmark.matrices import CLASSES, config


@pytest.fixture(scope="module")
def sources(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy crawl's pictures as a folder per class, real and synthetic apart."""
    root = tmp_path_factory.mktemp("sources")
    facts = {row["key"]: row for row in read_parquet(world.truth).to_pylist()}
    for shard in sorted((world.root / "crawl").glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                row = facts[member.name.split(".")[0]]
                if member.name.endswith(".jpg") and row["kind"] in ("real", "synthetic"):
                    target = root / row["kind"] / CLASSES[row["cls"]] / member.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(tar.extractfile(member).read())
    return root


@pytest.fixture(scope="module")
def whole(world: World, sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    summary = benchmark.run(config(world, sources, out))
    assert (summary.num_runs, summary.num_on_record) == (2, 0)
    return out
