"""Every record of a tar or parquet file is read, or on record as missing."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.images.rejects import Reason, Reject
from pipelines.ingest.record import Record
from pipelines.ingest.records import read
from pipelines.ingest.sources import ParquetUnit, Unit, find
from tests.pipelines.ingest.crawls import pack


def jpeg(color: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32, 32), (color, 255 - color, 7)).save(out, "JPEG")
    return out.getvalue()


def units(source: Path, shard_size: int = 1000) -> list[Unit]:
    found = find([str(source)], shard_size=shard_size, pool=Path("/nowhere"))
    return [unit for unit in found if isinstance(unit, Unit)]


def records(source: Path) -> list[Record]:
    return [record for unit in units(source) for record in read(unit, 1 << 20)]


def reasons(found: list[Record]) -> list[tuple[str, str]]:
    return [(r.member, r.content.reason if isinstance(r.content, Reject) else "image") for r in found]


# Tars


def test_samples_are_grouped_as_webdataset_groups_them(tmp_path: Path) -> None:
    tar = pack(
        tmp_path / "0.tar",
        [
            ("a/1.json", b"{}"),
            ("a/1.JPG", b"first"),
            ("a/1.seg.PNG", b"second"),
            ("a/1.cls", b"7"),
            ("b/1.jpg", b"third"),
            ("b/1.depth.npy", b"array"),
            ("__meta__", b"notes"),
            ("._junk.jpg", b"resource fork"),
            ("readme", jpeg()),
        ],
    )
    assert records(tar) == [
        Record("a/1.JPG", b"first", {"json": b"{}", "cls": b"7"}),
        Record("a/1.seg.PNG", b"second", {}),
        Record("b/1.jpg", b"third", {"depth.npy": b"array"}),
        Record("readme", jpeg(), {}),
    ]


def test_samples_without_an_image_are_on_record(tmp_path: Path) -> None:
    tar = pack(tmp_path / "0.tar", [("1.json", b"{}"), ("1.txt", b""), ("tool.exe", b"MZ"), ("2.jpg", b"image")])
    assert reasons(records(tar)) == [
        ("1.json", Reason.MISSING),
        ("tool.exe", Reason.NOT_AN_IMAGE),
        ("2.jpg", "image"),
    ]


def crawl(folder: Path, *, parquet: bool, stats: bool) -> tuple[Path, list[int]]:
    """A shard of three samples as img2dataset writes it; the ends of its members."""
    files = [(f"0000000{row}.{ext}", b"x" * 600) for row in range(3) for ext in ("jpg", "json", "txt")]
    tar = pack(folder / "00000.tar", files)
    if parquet:
        status = ["success", "failed_to_download", "success", "success"]
        keys = ["00000000", "00000009", "00000001", "00000002"]
        pq.write_table(pa.table({"key": keys, "status": status}), folder / "00000.parquet")
    if stats:
        (folder / "00000_stats.json").write_text(json.dumps({"count": 4, "successes": 3}))
    return tar, [1536 * (number + 1) for number in range(len(files))]


@pytest.mark.parametrize(("parquet", "stats"), [(True, True), (True, False), (False, True)])
def test_what_the_metadata_list_and_a_truncated_tar_lacks_is_missing(
    tmp_path: Path, parquet: bool, stats: bool
) -> None:
    tar, ends = crawl(tmp_path, parquet=parquet, stats=stats)
    whole = tar.read_bytes()
    assert reasons(records(tar)) == [(f"0000000{row}.jpg", "image") for row in range(3)]

    tar.write_bytes(whole[: ends[2]])  # at the boundary of two samples: tarfile reads it without an error
    names = ["00000001", "00000002"] if parquet else ["", ""]
    assert reasons(records(tar)) == [("00000000.jpg", "image"), *((name, Reason.MISSING) for name in names)]

    tar.write_bytes(whole[: ends[2] + 600])  # in the second image
    cut = records(tar)
    assert reasons(cut) == [
        ("00000000.jpg", "image"),
        ("00000001.jpg", Reason.INCOMPLETE_ARCHIVE),
        (names[-1], Reason.MISSING),
    ]

    tar.write_bytes(whole[: ends[3] + 600])  # in the second JSON: its image is whole
    assert reasons(records(tar))[:2] == [("00000000.jpg", "image"), ("00000001.jpg", "image")]
    assert len(records(tar)) == 3

    tar.write_bytes(b"")
    assert [reason for _, reason in reasons(records(tar))] == [Reason.MISSING] * 3


def test_a_truncated_tar_without_metadata_is_one_reject(tmp_path: Path) -> None:
    tar, ends = crawl(tmp_path, parquet=False, stats=False)
    (tmp_path / "00000.parquet").write_bytes(b"")  # what a killed img2dataset leaves
    whole = tar.read_bytes()
    tar.write_bytes(whole[: ends[2]])
    assert reasons(records(tar)) == [("00000000.jpg", "image"), ("", Reason.INCOMPLETE_ARCHIVE)]
    tar.write_bytes(whole[: ends[3] + 600])  # in a JSON: no image is cut, but others are lost
    images = [(f"0000000{row}.jpg", "image") for row in range(2)]
    assert reasons(records(tar)) == [*images, ("", Reason.INCOMPLETE_ARCHIVE)]
    tar.write_bytes(b"")
    assert reasons(records(tar)) == [("", Reason.INCOMPLETE_ARCHIVE)]


# Parquet


@pytest.mark.parametrize("kind", ["struct", "binary", "large"])
def test_parquet_in_its_usual_shapes(tmp_path: Path, kind: str) -> None:
    images: list[Any] = [jpeg(row) for row in range(5)] + [None]
    if kind == "struct":
        images = [{"bytes": image, "path": f"{row}.jpg"} for row, image in enumerate(images)]
    column = pa.array(images, pa.large_binary() if kind == "large" else None)
    table = pa.table({"label": list(range(6)), "score": [float("nan")] * 6, "image": column, "nested": [[1]] * 6})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    found = units(tmp_path / "a.parquet", shard_size=3)
    assert [(unit.part, unit.row_groups) for unit in found if isinstance(unit, ParquetUnit)] == [
        ("rows 0-3", (0, 1)),
        ("rows 4-5", (2,)),
    ]
    read_back = [record for unit in found for record in read(unit, 1 << 20)]
    assert [record.content for record in read_back[:5]] == [jpeg(row) for row in range(5)]
    assert read_back[4].member == ("4.jpg" if kind == "struct" else "row 4")
    assert json.loads(read_back[4].sidecars["json"]) == {"label": 4, "score": None, "nested": [1]}
    assert reasons(read_back)[5][1] is Reason.MISSING


def test_a_damaged_parquet_page_loses_the_rest_on_record(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"jpg": [jpeg(row) for row in range(200)]}), path, compression="zstd", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    path.write_bytes(content)
    found = reasons(records(path))
    assert len(found) == 200
    assert {reason for _, reason in found} <= {"image", Reason.INCOMPLETE_ARCHIVE}
    assert found[-1] == ("row 199", Reason.INCOMPLETE_ARCHIVE)
