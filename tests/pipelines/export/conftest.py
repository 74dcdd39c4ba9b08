from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.pool.manifest import Pool
from tests.conftest import World
from tests.pipelines.export.exports import write_scores


@pytest.fixture(scope="module")
def crawl(world: World) -> Path:
    return world.root / "crawl"


@pytest.fixture(scope="module")
def pool(world: World) -> Path:
    return world.pool


@pytest.fixture(scope="module")
def run(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scored") / "run"
    write_scores(Pool.open(pool), path)
    return path


@pytest.fixture(scope="module")
def joined(pool: Path, run: Path) -> pa.Table:
    shards = Pool.open(pool).shards
    scores = pa.concat_tables(pq.read_table(run / "scores" / f"{shard}.parquet") for shard in shards)
    rows = pa.concat_tables(pq.read_table(pool / f"{shard}.parquet") for shard in shards)
    for name in scores.column_names[1:]:
        rows = rows.append_column(name, scores[name])
    return rows
