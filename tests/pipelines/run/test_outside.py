"""Scores from outside: files as people have them, what is refused, and where the values come out."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import BadInput, CorruptShard, Incompatible
from pipelines.pool.manifest import Pool
from pipelines.pool.rows import Rows
from pipelines.run import outside
from pipelines.run.scores import SCHEMA, ScoredPool
from tests.conftest import World


@pytest.fixture(scope="module")
def pool(world: World) -> Pool:
    return Pool.open(world.pool)


@pytest.fixture(scope="module")
def rows(pool: Pool) -> list[dict[str, Any]]:
    return [row for table in pool.tables(["key", "sha256"]) for row in table.to_pylist()]


def parquet(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_values_come_by_key_and_by_sha256(pool: Pool, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(len(rows))
    values = np.arange(len(rows), dtype=np.float64) / 7
    by_key = parquet(tmp_path / "a.parquet", key=[rows[i]["key"] for i in order], value=values[order])
    digests = [rows[i]["sha256"].upper() for i in order[:50]]
    by_digest = parquet(tmp_path / "b.parquet", sha256=[*digests, "0" * 64], prompt=["x"] * 51, logit=[*order[:50], -3])
    found = outside.read(pool, [f"first={by_key}", f"second={by_digest}"])
    assert found.names == ("first", "second")
    aligned = found.align(Rows.of_pool(pool))
    assert aligned["first"].dtype == np.float32
    assert aligned["first"] == pytest.approx(values)
    there = np.zeros(len(rows), dtype=bool)
    there[order[:50]] = True
    assert np.array_equal(np.isfinite(aligned["second"]), there)
    assert np.array_equal(aligned["second"][there], np.flatnonzero(there))
    # A file by sha256 may know images that are not in the pool, such as the labeled ones.
    elsewhere = found.of(["0" * 64, "f" * 64, rows[order[0]]["sha256"]])
    assert elsewhere["second"].tolist()[0] == -3 and elsewhere["second"].tolist()[2] == order[0]
    assert np.isnan(elsewhere["second"][1]) and np.isnan(elsewhere["first"][:2]).all()


def test_rows_that_were_left_out_stay_aligned(pool: Pool, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    values = {row["sha256"]: float(i) for i, row in enumerate(rows)}
    file = parquet(tmp_path / "a.parquet", sha256=list(values), value=list(values.values()))
    some = Rows.of_pool(pool, without=frozenset(row["sha256"] for row in rows[::3]))
    kept = [float(i) for i in range(len(rows)) if i % 3]
    assert outside.read(pool, [f"a={file}"]).align(some)["a"].tolist() == kept


def test_a_csv_and_missing_values(pool: Pool, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    lines = ["key,label,score", *(f"{row['key']},cat,{'' if i == 1 else i}" for i, row in enumerate(rows[:4]))]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    nans = parquet(tmp_path / "b.parquet", key=[row["key"] for row in rows[:3]], value=[1.0, float("nan"), None])
    found = outside.read(pool, [f"a={tmp_path / 'a.csv'}", f"b={nans}"]).align(Rows.of_pool(pool))
    assert found["a"][:4].tolist() == pytest.approx([0, np.nan, 2, 3], nan_ok=True)
    assert found["b"][:3].tolist() == pytest.approx([1, np.nan, np.nan], nan_ok=True)
    assert np.isnan(found["a"][4:]).all()


def test_the_column_of_the_name_goes_before_value_and_score(
    pool: Pool, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    file = parquet(tmp_path / "a.parquet", key=[rows[0]["key"]], score=[1], value=[2], nsfw=[3])
    found = outside.read(pool, [f"nsfw={file}", f"other={file}"]).align(Rows.of_pool(pool))
    assert (found["nsfw"][0], found["other"][0]) == (3, 2)


def refusals(rows: list[dict[str, Any]], folder: Path) -> dict[str, str]:
    """Options that are refused, with a part of the sentence."""
    keys = [row["key"] for row in rows[:3]]

    def made(name: str, **columns: Any) -> str:
        return parquet(folder / f"{name}.parquet", **columns)

    (folder / "bad.parquet").write_bytes(b"PAR1 no")
    (folder / "bad.csv").write_bytes(b"key,value\n1\n2,3,4\n")
    (folder / "text.csv").write_text(f"key,value\n{keys[0]},high\n")
    (folder / "twice.csv").write_text("key,value,value\n")
    (folder / "a.json").write_text("{}")
    good = made("good", key=keys, value=[1, 2, 3])
    return {
        "a": "write NAME=FILE",
        "a=": "write NAME=FILE",
        f"2nd={good}": "'2nd' cannot name a column",
        f"a b={good}": "'a b' cannot name a column",
        f"ä={good}": "'ä' cannot name a column",
        f"Confidence={good}": "'Confidence' is taken by a column of curate",
        f"a={folder / 'no.parquet'}": "there is no such file",
        f"a={folder}": "there is no such file",
        f"a={folder / 'a.json'}": "neither a .parquet nor a .csv",
        f"a={folder / 'bad.parquet'}": "it cannot be read",
        f"a={folder / 'bad.csv'}": "it cannot be read",
        f"a={folder / 'text.csv'}": "column 'value' holds string, not numbers",
        f"a={folder / 'twice.csv'}": "two of its columns have the same name",
        f"a={made('keyless', id=keys, value=[1, 2, 3])}": "there is no column key or sha256, only id, value",
        f"a={made('valueless', key=keys)}": "no other column holds numbers",
        f"a={made('many', key=keys, x=[1, 2, 3], y=[1, 2, 3])}": "the columns with numbers are x, y",
        f"a={made('infinite', key=keys, value=[1, float('inf'), 3])}": "is infinite in row 2",
        f"a={made('huge', key=keys, value=[1, 2, 1e300])}": "is infinite in row 3, or too large",
        f"a={made('nothing', key=keys, value=pa.nulls(3, pa.float64()))}": "has no value at all",
        f"a={made('empty', key=pa.array([], pa.string()), value=pa.array([], pa.float32()))}": "it has no rows",
        f"a={made('number', key=[1, 2, 3], value=[1, 2, 3])}": "column 'key' holds int64, not text",
        f"a={made('null', key=[keys[0], None, keys[1]], value=[1, 2, 3])}": "column 'key' is empty in row 2",
        f"a={made('twin', key=[keys[0], keys[1], keys[0]], value=[1, 2, 1])}": f"key {keys[0]} has more than one row",
        f"a={made('others', key=['1', '2'], value=[1, 2])}": "none of its 2 images is in the pool (the first key is",
        f"a={made('short', sha256=['ab'], value=[1])}": "'ab' in row 1 is not a sha256",
        f"a={made('unknown', sha256=['0' * 64], value=[1])}": "none of its 1 images is in the pool",
    }


def test_what_cannot_be_used_is_one_sentence(pool: Pool, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    for given, expected in refusals(rows, tmp_path).items():
        with pytest.raises(BadInput) as refused:
            outside.read(pool, [given])
        assert expected in str(refused.value), given
        assert str(refused.value).startswith(f"--scores {given}")
        assert "\n" not in str(refused.value)
    good = f"{tmp_path / 'good.parquet'}"
    with pytest.raises(BadInput, match="another --scores has this name"):
        outside.read(pool, [f"a={good}", f"A={good}"])


def test_no_column_of_curate_can_be_named() -> None:
    assert set(SCHEMA.names) <= outside.TAKEN


def test_the_run_keeps_them(pool: Pool, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert outside.load(run).names == () and not len(outside.load(run).of(["0" * 64]))

    def given(name: str, *values: float) -> outside.Outside:
        keys = [row["key"] for row in rows[: len(values)]]
        return outside.read(pool, [f"{name}={parquet(tmp_path / f'{name}.parquet', key=keys, value=list(values))}"])

    outside.store(run, given("fake", 1, 2), trained=True)
    outside.store(run, given("nice", 5, 6, 7), trained=False)
    outside.store(run, given("Nice", 8), trained=False)  # replaces the other spelling
    found = outside.load(run)
    assert found.names == ("fake", "Nice") and found.trained == {"fake"}
    digests = [row["sha256"] for row in rows[:3]]
    assert found.of(digests)["fake"].tolist() == pytest.approx([1, 2, np.nan], nan_ok=True)
    assert found.of(digests)["Nice"].tolist() == pytest.approx([8, np.nan, np.nan], nan_ok=True)
    with pytest.raises(Incompatible, match="was trained with scores of this name"):
        outside.store(run, given("FAKE", 1), trained=False)
    outside.store(run, outside.NONE, trained=True)  # a new training without any
    assert outside.load(run) is outside.NONE


@pytest.mark.parametrize("content", [b"no parquet", None])
def test_a_damaged_file_in_the_run_is_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    if content is None:
        pq.write_table(
            pa.table({"sha256": ["f" * 64, "0" * 64], "a": pa.array([1, 2], pa.float32())}), tmp_path / outside.FILE
        )
    else:
        (tmp_path / outside.FILE).write_bytes(content)
    with pytest.raises(CorruptShard, match=r"outside\.parquet cannot be used"):
        outside.load(tmp_path)


def test_they_are_columns_of_the_scored_pool(untrained: Path, tmp_path: Path) -> None:
    shutil.copytree(untrained / "run", tmp_path / "run")
    before = ScoredPool.open(untrained / "pool", tmp_path / "run")
    plain = {shard: before.rows(shard) for shard in before.shards}
    assert before.schema.equals(SCHEMA) and before.columns == tuple(SCHEMA.names)
    keys = [key for table in plain.values() for key in table["key"].to_pylist()]
    file = parquet(tmp_path / "a.parquet", key=keys[::2], value=np.arange(len(keys[::2])))
    outside.store(tmp_path / "run", outside.read(before.pool, [f"nice={file}"]), trained=False)
    scored = ScoredPool.open(untrained / "pool", tmp_path / "run")
    assert scored.columns == (*SCHEMA.names, "nice")
    tables = {shard: scored.rows(shard) for shard in scored.shards}
    for shard, table in tables.items():
        assert table.schema.equals(scored.schema)
        assert table.drop_columns(["nice"]).equals(plain[shard])
    expected = [None if i % 2 else i // 2 for i in range(len(keys))]
    assert [value for table in tables.values() for value in table["nice"].to_pylist()] == expected
    assert scored.rows(scored.shards[0], ["nice", "key"]).column_names == ["nice", "key"]
