"""What the crawl says of an image becomes columns of the manifest, of one type in all shards."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.errors import BadInput
from pipelines.export.condition import Where
from pipelines.ingest.facts import facts
from pipelines.pool.manifest import MAX_FACTS, POOL_SCHEMA, Pool
from tests.pipelines.ingest.crawls import Files, check, pack, picture, run


def described(number: int, values: object, caption: bytes | None = None) -> Files:
    sample = [(f"{number:03d}.jpg", picture(number)), (f"{number:03d}.json", json.dumps(values).encode())]
    return sample if caption is None else [*sample, (f"{number:03d}.txt", caption)]


def test_the_usual_facts_have_columns_of_their_own(tmp_path: Path) -> None:
    laion = {
        "URL": "https://www.Example.org:8080/a.jpg?x=1", "TEXT": "in the JSON", "key": "000000123", "similarity": 0.31,
        "original_width": 800, "original_height": 600, "uid": "ab" * 16, "status": "success", "exif": "{}",
    }  # fmt: skip
    pack(
        tmp_path / "0.tar",
        [*described(0, laion, "caf\u00e9".encode("utf-16")), *described(1, {"url": 7, "text": ["x", "y"]})],
    )
    run(tmp_path / "pool", tmp_path / "0.tar")
    first, second = Pool(tmp_path / "pool").rows("00000").to_pylist()
    assert {name: first[name] for name in POOL_SCHEMA.names[13:]} == {
        "crawl_key": "000000123", "url": "https://www.Example.org:8080/a.jpg?x=1", "domain": "example.org",
        "caption": "café", "uid": "ab" * 16, "original_width": 800, "original_height": 600, "similarity": 0.31,
    }  # fmt: skip
    assert (second["crawl_key"], second["url"], second["domain"], second["caption"]) == ("001", None, None, "x")
    assert Pool(tmp_path / "pool").facts.names == []
    check(tmp_path / "pool")


def test_other_facts_are_typed_over_all_shards(tmp_path: Path) -> None:
    pack(tmp_path / "0.tar", described(0, {"Aesthetic Score": 5, "nsfw": False, "year": 2020, "license": "cc0"}))
    pack(tmp_path / "1.tar", described(1, {"aesthetic_score": 6.5, "year": "n/a", "tags": ["a"], "none": None}))
    pack(tmp_path / "2.tar", [("2.jpg", picture(2))])
    run(tmp_path / "pool", tmp_path / "{0,1,2}.tar")
    pool = Pool(tmp_path / "pool")
    assert {field.name: field.type for field in pool.facts} == {
        "crawl_aesthetic_score": pa.float64(), "crawl_license": pa.string(), "crawl_nsfw": pa.bool_(),
        "crawl_year": pa.string(),
    }  # fmt: skip
    rows = pa.concat_tables(pool.tables(["key", *pool.facts.names]))
    assert rows["crawl_aesthetic_score"].to_pylist() == [5.0, 6.5, None]
    assert rows["crawl_year"].to_pylist() == ["2020", "n/a", None]
    assert rows["crawl_nsfw"].to_pylist() == [False, None, None]
    assert pool.rows("00001").column_names == POOL_SCHEMA.names


def test_the_number_of_columns_is_bounded(tmp_path: Path) -> None:
    files = [
        file
        for number in range(3)
        for file in described(number, {f"f{number}_{i}": i for i in range(500)} | {"all": 1})
    ]
    pack(tmp_path / "0.tar", files)
    pack(tmp_path / "1.tar", described(9, {f"g{i}": i for i in range(500)}))
    run(tmp_path / "pool", tmp_path / "{0,1}.tar")
    facts = Pool(tmp_path / "pool").facts.names
    assert len(facts) == MAX_FACTS and "crawl_all" in facts


def test_a_condition_reads_the_facts_that_it_uses(tmp_path: Path) -> None:
    pack(tmp_path / "0.tar", [*described(0, {"score": 5}), *described(1, {"score": 7}), *described(2, {})])
    run(tmp_path / "pool", tmp_path / "0.tar")
    pool = Pool(tmp_path / "pool")
    rows = pool.rows("00000")
    assert Where("crawl_score > 5", POOL_SCHEMA, pool=pool).mask(rows).tolist() == [False, True, False]
    assert (
        Where("CRAWL_SCORE < 6 or caption is not null", POOL_SCHEMA, pool=pool).mask(rows.slice(1)).tolist()
        == [False] * 2
    )
    assert Where("crawl_key = '001'", POOL_SCHEMA, pool=pool).mask(rows.take([1])).tolist() == [True]
    with pytest.raises(BadInput, match="did you mean 'crawl_score'"):
        Where("crawl_scores > 5", POOL_SCHEMA, pool=pool)


@pytest.mark.parametrize(
    "metadata",
    [b"\xff", b"[1]",
     b"[" * 100_000, b'{"url": "\\ud800", "a\\ud800": "\\ud800", "n": 1e999, "i": 1' + b"0" * 400 + b"}",
     b'{"": 1, "...": 2, "url": "http://[", "width": NaN}'],
)  # fmt: skip
def test_nothing_in_metadata_raises(metadata: bytes, tmp_path: Path) -> None:
    found = facts("a/b.jpg", {"json": metadata, "txt": b"\xff\xfe\x00"})
    assert found.crawl_key == "b"
    pack(tmp_path / "0.tar", [("b.jpg", picture(0)), ("b.json", metadata)])
    assert run(tmp_path / "pool", tmp_path / "0.tar").kept == 1
    assert np.all([name.isascii() for name in Pool(tmp_path / "pool").facts.names])
