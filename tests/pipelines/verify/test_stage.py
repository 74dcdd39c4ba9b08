"""Each planted corruption is found where it is, and a sound pool passes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from pipelines import ingest, score, train, verify
from pipelines.errors import MissingArtifact
from pipelines.pool.manifest import Pool
from pipelines.run.neighbors import Index
from pipelines.run.scores import ScoredPool
from pipelines.storage.shards import ShardWriter, read_samples
from pipelines.verify import VerifyConfig
from tests.conftest import World


@pytest.fixture(scope="module")
def sound(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool and a run that scored it."""
    root = tmp_path_factory.mktemp("sound")
    shutil.copytree(world.pool, root / "pool")
    settings = {
        "network": {"backbone": "small"},
        "recipe": {"num_steps": 6, "batch_size": 8, "unlabeled_ratio": 2, "warmup": 0.3},
        "machine": {"device": "cpu"},
    }
    train.run(train.TrainConfig(labeled=world.seed, pool=root / "pool", run=root / "run", **settings))
    score.run(score.ScoreConfig(pool=root / "pool", run=root / "run", device="cpu"))
    return root


def problems(root: Path) -> list[verify.Problem]:
    return list(verify.run(VerifyConfig(pool=root / "pool", run=root / "run")).problems)


def test_a_sound_pool_passes_and_is_counted(sound: Path) -> None:
    summary = verify.run(VerifyConfig(pool=sound / "pool", run=sound / "run"))
    pool = Pool.open(sound / "pool")
    assert summary.problems == ()
    assert (summary.num_shards, summary.num_images) == (len(pool.shards), pool.num_images)
    assert summary.num_scored == len(pool.shards)
    assert summary.num_rejects > 0


def test_without_a_run_the_pool_alone_is_verified(world: World, tmp_path: Path) -> None:
    summary = verify.run(VerifyConfig(pool=world.pool, run=tmp_path / "none"))
    assert summary.problems == ()
    assert summary.num_scored == 0
    with pytest.raises(MissingArtifact):
        verify.run(VerifyConfig(pool=tmp_path))


def change(path: Path, **columns: Callable[[pa.ChunkedArray], pa.Array]) -> None:
    """Rewrite columns of a parquet file."""
    table = pq.read_table(path)
    for name, function in columns.items():
        place = table.column_names.index(name)
        field = table.schema.field(name)
        table = table.set_column(place, field, pa.array(function(table[name])).cast(field.type))
    pq.write_table(table, path)


def flip_a_bit(root: Path) -> None:
    row = Pool.open(root / "pool").rows("00000").slice(3, 1).to_pylist()[0]
    with (root / "pool" / "00000.tar").open("r+b") as file:
        file.seek(row["offset"] + row["num_bytes"] // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 4]))


def cut_the_tar(root: Path) -> None:
    tar = root / "pool" / "00000.tar"
    with tar.open("r+b") as file:
        file.truncate(tar.stat().st_size // 2)


def cut_at_a_sample(root: Path) -> None:
    row = Pool.open(root / "pool").rows("00000").slice(5, 1).to_pylist()[0]
    with (root / "pool" / "00000.tar").open("r+b") as file:
        file.truncate(row["offset"] - 512)


def append_to_the_tar(root: Path) -> None:
    with (root / "pool" / "00000.tar").open("ab") as file:
        file.write(b"\0" * 512)


def drop_the_tar(root: Path) -> None:
    (root / "pool" / "00000.tar").unlink()


def empty_the_manifest(root: Path) -> None:
    (root / "pool" / "00000.parquet").write_bytes(b"")


def drop_a_row(root: Path) -> None:
    path = root / "pool" / "00000.parquet"
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table.slice(0, 4), table.slice(5)]), path)


def shift_the_offsets(root: Path) -> None:
    change(root / "pool" / "00000.parquet", offset=lambda column: pc.add(column, 512).combine_chunks())


def drop_the_rejects(root: Path) -> None:
    (root / "pool" / "rejects" / "00000.parquet").unlink()


def miscount(root: Path) -> None:
    path = root / "pool" / "00000_stats.json"
    stats = json.loads(path.read_text())
    path.write_text(json.dumps(stats | {"count": stats["count"] + 1}))


def empty_the_stats(root: Path) -> None:
    (root / "pool" / "00000_stats.json").write_text("")


def lose_the_counts(root: Path) -> None:
    (root / "pool" / "00000_stats.json").write_text("{}")


def lose_the_mark(root: Path) -> None:
    (root / "pool" / "00001_stats.json").unlink()


def rewrite(tar: Path, members: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]) -> None:
    """Write a tar's members (name, content) anew."""
    before = [
        (f"{key}.{suffix}", data) for key, sample in read_samples(tar) for suffix, data in sample.items()
    ]  # fmt: skip
    with ShardWriter(tar) as writer:
        for name, data in members(before):
            writer.add(name, data)


def flip_a_bit_of_a_caption(root: Path) -> None:
    tar = root / "pool" / "00000.tar"
    content = bytearray(tar.read_bytes())
    content[content.index(b"picture ") + 9] ^= 1
    tar.write_bytes(content)


def part_a_sample(root: Path) -> None:
    """The JSON of the first sample behind the second."""
    rewrite(root / "pool" / "00000.tar", lambda members: [members[0], *members[2:6], members[1], *members[6:]])


def list_another_digest(root: Path) -> None:
    change(root / "pool" / "00000.parquet", sha256=lambda column: ["0" * 64, *column.to_pylist()[1:]])


def be_killed_in_the_pool(root: Path) -> None:
    (root / "pool" / ".00000.parquet.tmp").write_bytes(b"half")
    (root / "pool" / ".partial").mkdir()


def be_killed_in_the_run(root: Path) -> None:
    (root / "run" / "scores" / ".00000.parquet.tmp").write_bytes(b"half")


def ingest_a_shard_twice(root: Path) -> None:
    pool, last = root / "pool", Pool.open(root / "pool").shards[-1]
    new = f"{int(last) + 1:05d}"
    shutil.copy(pool / "00000.tar", pool / f"{new}.tar")
    rewrite(pool / f"{new}.tar", lambda members: [(new + name[5:], data) for name, data in members])
    table = pq.read_table(pool / "00000.parquet")
    table = table.set_column(
        0, table.schema.field("key"), pa.array([new + key[5:] for key in table["key"].to_pylist()])
    )
    table = table.set_column(1, table.schema.field("shard"), pa.array([new] * len(table)))
    pq.write_table(table, pool / f"{new}.parquet")
    shutil.copy(pool / "rejects" / "00000.parquet", pool / "rejects" / f"{new}.parquet")
    shutil.copy(pool / "00000_stats.json", pool / f"{new}_stats.json")


def score_another_pool(root: Path) -> None:
    """The same keys, other images: as where the pool was made anew."""
    path = root / "run" / "scores" / "00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"shard": b"another"}), path)


def drop_a_row_of_scores(root: Path) -> None:
    path = root / "run" / "scores" / "00000.parquet"
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table.slice(0, 4), table.slice(5)]), path)


def score_a_shard_that_is_not(root: Path) -> None:
    shutil.copy(root / "run" / "scores" / "00000.parquet", root / "run" / "scores" / "00777.parquet")


def score_other_images(root: Path) -> None:
    path = root / "run" / "scores" / "00000.parquet"
    change(path, key=lambda column: pa.array(column.to_pylist()[::-1]))


def score_by_another_model(root: Path) -> None:
    path = root / "run" / "scores" / "00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"model": b"another"}), path)


def spoil_probabilities(root: Path) -> None:
    change(root / "run" / "scores" / "00000.parquet", probs=lambda column: [np.zeros(5, np.float16)] * len(column))


def turn_verdicts(root: Path) -> None:
    change(root / "run" / "scores" / "00000.parquet", synthetic=lambda column: pc.invert(column).combine_chunks())


def cut_the_embeddings(root: Path) -> None:
    path = root / "run" / "embeddings" / "00000.npy"
    np.save(path, np.load(path)[:-1])


def spoil_the_weights(root: Path) -> None:
    path = root / "run" / "model" / "detector.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def lose_the_weights(root: Path) -> None:
    (root / "run" / "model" / "classifier.safetensors").unlink()


def lose_the_model(root: Path) -> None:
    shutil.rmtree(root / "run" / "model")


def cut_the_program(root: Path) -> None:
    path = root / "run" / "model" / "classifier.pt2"
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit_of_the_program(root: Path) -> None:
    path = root / "run" / "model" / "classifier.pt2"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_the_detector(root: Path) -> None:
    path = root / "run" / "model" / "detector.pt2"
    path.write_bytes(path.read_bytes()[:-100])


def cut_the_checkpoint(root: Path) -> None:
    path = root / "run" / "checkpoint" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def score_anew_beside_an_index(root: Path) -> None:
    Index.open(ScoredPool.open(root / "pool", root / "run"))
    path = root / "run" / "model" / "detector.safetensors"
    weights = load_file(path)
    save_file({name: 2 * value for name, value in weights.items()}, path)
    score.run(score.ScoreConfig(pool=root / "pool", run=root / "run", device="cpu"))


def cut_the_index(root: Path) -> None:
    Index.open(ScoredPool.open(root / "pool", root / "run"))
    path = root / "run" / "index" / "faiss.index"
    path.write_bytes(path.read_bytes()[:1000])


def spoil_a_mark(root: Path) -> None:
    (root / "run" / "marks.jsonl").write_text("no mark\n{}\n")


def spoil_scores_from_outside(root: Path) -> None:
    (root / "run" / "outside.parquet").write_bytes(b"no parquet")


CORRUPTIONS = {
    flip_a_bit: ("00000.tar", "are not those in the manifest"),
    cut_the_tar: ("00000.tar", "cut"),
    cut_at_a_sample: ("00000.tar", ""),
    append_to_the_tar: ("00000.tar", "end mark take"),
    drop_the_tar: ("00000.tar", "missing"),
    empty_the_manifest: ("00000.tar", "cannot be read"),
    drop_a_row: ("00000.tar", "where the manifest lists"),
    shift_the_offsets: ("00000.parquet", "is at byte"),
    drop_the_rejects: ("00000.tar", "missing"),
    miscount: ("00000.parquet", "_stats.json counts"),
    empty_the_stats: ("00000.tar", "is not JSON"),
    lose_the_counts: ("00000.tar", "counts no images"),
    lose_the_mark: ("00001.tar", "belongs to no finished shard"),
    ingest_a_shard_twice: ("pool", "more than once"),
    score_other_images: ("00000.parquet", "other images"),
    score_by_another_model: ("00000.parquet", "another model"),
    spoil_probabilities: ("00000.parquet", "sum to 1"),
    turn_verdicts: ("00000.parquet", "below the threshold"),
    cut_the_embeddings: ("00000.parquet", "has the shape"),
    spoil_the_weights: ("model", "cannot be loaded"),
    flip_a_bit_of_a_caption: ("00000.tar", "its captions and metadata are not"),
    part_a_sample: ("00000.tar", "twice: readers would split it"),
    list_another_digest: ("00000.tar", "are not those in the manifest"),
    be_killed_in_the_pool: (".00000.parquet.tmp", "unfinished work"),
    be_killed_in_the_run: (".00000.parquet.tmp", "unfinished work"),
    score_another_pool: ("00000.parquet", "other images"),
    drop_a_row_of_scores: ("00000.parquet", "other images"),
    score_a_shard_that_is_not: ("00777.parquet", "that is not in the pool"),
    lose_the_weights: ("model", "cannot be loaded"),
    lose_the_model: ("model", "holds no trained model"),
    cut_the_program: ("classifier.pt2", "is truncated"),
    cut_the_detector: ("detector.pt2", "is truncated"),
    flip_a_bit_of_the_program: ("classifier.pt2", "is damaged"),
    cut_the_checkpoint: ("state.safetensors", "not a readable checkpoint"),
    score_anew_beside_an_index: ("index", "of other scores"),
    cut_the_index: ("index", "missing, truncated"),
    spoil_a_mark: ("marks.jsonl", "is not a mark"),
    spoil_scores_from_outside: ("outside.parquet", "cannot be used"),
}


@pytest.mark.parametrize("corrupt", CORRUPTIONS, ids=lambda function: function.__name__)
def test_a_planted_corruption_is_found(corrupt: Callable[[Path], None], sound: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(sound, root)
    corrupt(root)
    where, what = CORRUPTIONS[corrupt]
    found = problems(root)
    assert any(Path(problem.where).name == where and what in problem.what for problem in found), found
    assert all(problem.fix for problem in found)


def test_an_index_of_these_scores_is_no_problem_nor_are_shards_that_it_lacks(sound: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(sound, root)
    aside = root / "run" / "scores" / "00001.parquet"
    aside.rename(tmp_path / "aside")
    Index.open(ScoredPool.open(root / "pool", root / "run"))
    assert problems(root) == []
    (tmp_path / "aside").rename(aside)
    assert problems(root) == []


def test_the_fix_for_a_shard_fixes_it(world: World, sound: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(sound, root)
    images = set(digests(root / "pool"))
    flip_a_bit(root)
    (problem,) = problems(root)
    assert "remove the shard's .tar, .parquet, _stats.json and rejects" in problem.fix
    for path in [*(root / "pool").glob("00000*"), root / "pool" / "rejects" / "00000.parquet"]:
        path.unlink()
    ingest.run(ingest.IngestConfig(sources=(str(world.root / "crawl"),), pool=root / "pool", jobs=1))
    for problem in problems(root):
        assert problem.fix == "remove it"  # what the run has of the shard that is gone
        Path(problem.where).unlink()
    score.run(score.ScoreConfig(pool=root / "pool", run=root / "run", device="cpu"))
    assert problems(root) == []
    assert set(digests(root / "pool")) == images


def digests(pool: Path) -> list[str]:
    return [digest for table in Pool.open(pool).tables(["sha256"]) for digest in table["sha256"].to_pylist()]
