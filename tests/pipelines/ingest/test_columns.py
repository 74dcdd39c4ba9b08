"""Images are found in whichever column they are, and all other columns become JSON."""

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import BadInput
from pipelines.images.rejects import Reason, Reject
from pipelines.ingest.record import Record
from pipelines.ingest.records import read
from pipelines.ingest.sources import Unit, find
from tests.pipelines.ingest.crawls import pack, picture, run

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def records(path: Path, table: pa.Table, image_column: str | None = None) -> list[Record]:
    pq.write_table(table, path)
    found = find([str(path)], shard_size=1000, pool=Path("/nowhere"), image_column=image_column)
    return [record for unit in found if isinstance(unit, Unit) for record in read(unit, 1 << 20)]


def test_each_row_has_the_images_of_all_its_columns(tmp_path: Path) -> None:
    images = [picture(number) for number in range(6)]
    jpg = [{"bytes": images[0], "path": "0.jpg"}, None, {"bytes": images[2], "path": "2.jpg"}, None]
    png = [None, {"bytes": images[1], "path": "1.png"}, {"bytes": images[3], "path": None}, None]
    table = pa.table({"jpg": pa.array(jpg, STRUCT), "png": pa.array(png, STRUCT), "txt": list("abcd")})
    found = records(tmp_path / "a.parquet", table)
    assert [record.content for record in found[:4]] == images[:4]
    assert [record.member for record in found] == ["0.jpg", "1.png", "2.jpg", "row 2", "row 3"]
    assert [json.loads(record.sidecars["json"])["txt"] for record in found[:4]] == list("abcc")
    assert isinstance(found[4].content, Reject) and found[4].content.reason is Reason.MISSING


def test_lists_of_images_are_images(tmp_path: Path) -> None:
    rows = [[{"bytes": picture(0), "path": "a"}, {"bytes": picture(1), "path": "b"}], [], None]
    found = records(tmp_path / "a.parquet", pa.table({"images": pa.array(rows, pa.list_(STRUCT)), "n": [1, 2, 3]}))
    assert [record.member for record in found] == ["a", "b", "row 1", "row 2"]
    assert [record.content for record in found[:2]] == [picture(0), picture(1)]


@pytest.mark.parametrize("name", ["image_data", "data", "jpg_bytes", "picture", "Photo"])
@pytest.mark.parametrize("kind", ["binary", "dictionary", "view", "large"])
def test_binary_columns_of_any_kind_and_likely_name(tmp_path: Path, name: str, kind: str) -> None:
    column = pa.array([picture(0), picture(1), picture(0)])
    if kind == "dictionary":
        column = column.dictionary_encode()
    elif kind != "binary":
        column = column.cast(pa.binary_view() if kind == "view" else pa.large_binary())
    found = records(tmp_path / "a.parquet", pa.table({name: column, "label": [1, 2, 3]}))
    assert [record.content for record in found] == [picture(0), picture(1), picture(0)]


def test_a_column_of_any_name_can_be_named(tmp_path: Path) -> None:
    table = pa.table({"x": [picture(0)], "jpg": [b"no image"], "words": ["mine"], "text": ["not this"]})
    assert [record.content for record in records(tmp_path / "a.parquet", table, "x")] == [picture(0)]
    with pytest.raises(BadInput, match=r"no column 'words' of image bytes"):
        records(tmp_path / "a.parquet", table, "words")
    run(tmp_path / "pool", tmp_path / "a.parquet", image_column="x", caption_column="words")
    assert pq.read_table(tmp_path / "pool/00000.parquet")["caption"].to_pylist() == ["mine"]


def test_every_other_column_is_in_the_json(tmp_path: Path) -> None:
    columns: dict[str, Any] = {
        "caption": pa.array([["a dog", "a run"]]),
        "license": pa.array(["cc0"]).dictionary_encode(),
        "meta": pa.array([{"url": "https://x/1.jpg", "size": [1, 2], "score": float("nan")}]),
        "date": pa.array([datetime.datetime(2024, 1, 2, 3)]),
        "day": pa.array([datetime.date(2024, 1, 2)]),
        "took": pa.array([datetime.timedelta(seconds=90)]),
        "price": pa.array([Decimal("1.50")]),
        "view": pa.array(["text"], pa.string_view()),
        "pairs": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
        "far": pa.array([1 << 52], pa.timestamp("ms")),
        "null": pa.array([None], pa.null()),
    }
    (record,) = records(tmp_path / "a.parquet", pa.table({"image": [picture(0)], **columns, "mask": [b"bytes"]}))
    found = json.loads(record.sidecars["json"])
    assert found.pop("far")
    assert found == {
        "caption": ["a dog", "a run"], "license": "cc0", "date": "2024-01-02T03:00:00", "day": "2024-01-02",
        "meta": {"url": "https://x/1.jpg", "size": [1, 2], "score": None}, "took": 90.0, "price": 1.5, "view": "text",
        "pairs": [["k", 1]], "null": None,
    }  # fmt: skip


def test_text_that_is_not_utf8_is_escaped_wherever_it_is(tmp_path: Path) -> None:
    wrong = pa.array([b"caf\xe9"]).view(pa.string())
    table = pa.table({"image": [picture(0)], "text": wrong, "list": pa.ListArray.from_arrays([0, 1], wrong)})
    (record,) = records(tmp_path / "a.parquet", table)
    assert json.loads(record.sidecars["json"]) == {"text": "caf\\xe9", "list": ["caf\\xe9"]}


def test_a_parquet_beside_a_folder_or_tar_of_its_name_is_read_if_it_has_images(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"crawl/{name}").mkdir(parents=True)
        (tmp_path / f"crawl/{name}/0.jpg").write_bytes(picture(ord(name)))
    pq.write_table(pa.table({"jpg": [picture(0)]}), tmp_path / "crawl/a.parquet")
    pq.write_table(pa.table({"key": ["0"], "status": ["success"]}), tmp_path / "crawl/b.parquet")
    pack(tmp_path / "crawl/c.tar", [("0.jpg", picture(2))])
    pq.write_table(pa.table({"jpg": [picture(3)]}), tmp_path / "crawl/c.parquet")
    summary = run(tmp_path / "pool", tmp_path / "crawl")
    assert (summary.kept, summary.notes) == (5, ())


def test_a_row_group_is_not_read_ahead(tmp_path: Path) -> None:
    """Its pages are read one after the other, whatever its size."""
    with pq.ParquetWriter(tmp_path / "a.parquet", pa.schema([("jpg", pa.binary())]), compression="none") as writer:
        rows = [b"\xff\xd8\xff" + bytes([row % 256]) * 100_000 for row in range(400)]
        writer.write_table(pa.table({"jpg": rows}), row_group_size=400)
    del rows
    units = find([str(tmp_path / "a.parquet")], shard_size=1000, pool=Path("/nowhere"))
    (unit,) = (unit for unit in units if isinstance(unit, Unit))
    before = pa.total_allocated_bytes()
    found = read(unit, 1 << 20)
    next(found)
    assert pa.total_allocated_bytes() - before < 90 << 20
