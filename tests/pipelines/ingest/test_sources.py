"""Each kind of source is found, in a fixed order."""

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.errors import BadInput
from pipelines.images.rejects import Reason, Reject
from pipelines.ingest.record import Record
from pipelines.ingest.records import read
from pipelines.ingest.sources import FilesUnit, Unit, find
from tests.pipelines.ingest.crawls import pack


def jpeg(color: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32, 32), (color, 255 - color, 7)).save(out, "JPEG")
    return out.getvalue()


def units(*sources: str | Path, shard_size: int = 1000, pool: Path = Path("/nowhere")) -> list[Unit]:
    found = find([str(source) for source in sources], shard_size=shard_size, pool=pool)
    return [unit for unit in found if isinstance(unit, Unit)]


def notes(*sources: str | Path) -> list[str]:
    found = find([str(source) for source in sources], shard_size=1000, pool=Path("/nowhere"))
    return [note for note in found if isinstance(note, str)]


def records(*sources: str | Path, **options: Any) -> list[Record]:
    return [record for unit in units(*sources, **options) for record in read(unit, 1 << 20)]


def reasons(found: list[Record]) -> list[tuple[str, str]]:
    return [(r.member, r.content.reason if isinstance(r.content, Reject) else "image") for r in found]


# Folders


def test_a_folder_is_walked_by_name_with_sidecars_and_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "b/1.JPG", "a.png", "b/c/x.webp", ".hidden.jpg", ".git/y.jpg", "orphan.txt", "notes.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"bytes of " + name.encode())
    (tmp_path / "b/2.txt").write_text("caption")
    (tmp_path / "b/2.jpg.json").write_text("{}")
    assert [record[::2] for record in records(tmp_path)] == [
        ("a.png", {}),
        ("b/1.JPG", {}),
        ("b/2.jpg", {"json": b"{}", "txt": b"caption"}),
        ("b/c/x.webp", {}),
        ("orphan.txt", {}),
    ]


def test_loose_files_come_in_runs_across_folders(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"{number % 2}").mkdir(exist_ok=True)
        (tmp_path / f"{number % 2}/{number}.jpg").write_bytes(jpeg(number))
    found = units(tmp_path, shard_size=3)
    assert [unit.part for unit in found] == ["files 0-2", "files 3-5", "files 6-6"]
    assert [len(unit.files) for unit in found if isinstance(unit, FilesUnit)] == [3, 3, 1]


def test_an_entry_of_a_folder_that_is_not_a_readable_file_is_a_reject(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "large.jpg").write_bytes(bytes((1 << 20) + 1))
    (tmp_path / "bell\a.jpg").write_bytes(jpeg())
    (tmp_path / "link.jpg").symlink_to(tmp_path / "large.jpg")
    (tmp_path / os.fsdecode(b"n\xff.jpg")).write_bytes(jpeg())
    assert reasons(records(tmp_path)) == [
        ("bell\a.jpg", Reason.UNSAFE_NAME),
        ("broken.jpg", Reason.MISSING),
        ("large.jpg", Reason.TOO_MANY_BYTES),
        ("link.jpg", Reason.TOO_MANY_BYTES),
        ("n\\xff.jpg", "image"),
        ("pipe.jpg", Reason.NOT_A_FILE),
    ]


def test_tars_and_parquet_in_a_folder_are_units_and_their_metadata_are_not(tmp_path: Path) -> None:
    pack(tmp_path / "crawl/00000.tar", [("0.jpg", jpeg())])
    pq.write_table(pa.table({"key": ["0"], "status": ["success"]}), tmp_path / "crawl/00000.parquet")
    (tmp_path / "crawl/00000_stats.json").write_text("{}")
    (tmp_path / "files/00000").mkdir(parents=True)  # img2dataset's output as files
    (tmp_path / "files/00000/000000001.jpg").write_bytes(jpeg())
    pq.write_table(pa.table({"key": ["0"]}), tmp_path / "files/00000.parquet")
    (tmp_path / "files/00000_stats.json").write_text("{}")
    pq.write_table(pa.table({"jpg": [jpeg()]}), tmp_path / "hf.parquet")
    pq.write_table(pa.table({"key": ["0"]}), tmp_path / "truth.parquet")
    (tmp_path / "old.tar.gz").write_bytes(b"")
    (tmp_path / "cut.parquet").write_bytes(b"")
    assert [(Path(unit.source).name, unit.part) for unit in units(tmp_path)] == [
        ("00000.tar", ""),
        ("hf.parquet", "rows 0-0"),
        (tmp_path.name, "files 0-0"),
    ]
    said = " ".join(notes(tmp_path))
    assert len(notes(tmp_path)) == 3 and all(name in said for name in ("truth.parquet", "old.tar.gz", "cut.parquet"))


def test_links_to_folders_are_skipped_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/loop").symlink_to(tmp_path)
    (tmp_path / "a/1.jpg").write_bytes(jpeg())
    assert [record.member for record in records(tmp_path)] == ["a/1.jpg"]
    assert len(notes(tmp_path)) == 1


def test_a_changed_source_is_another_unit(tmp_path: Path) -> None:
    tar = pack(tmp_path / "0.tar", [("0.jpg", jpeg())])
    (tmp_path / "1.jpg").write_bytes(jpeg())
    before = [unit.identity for unit in units(tmp_path)]
    assert before == [unit.identity for unit in units(f"{tmp_path}/../{tmp_path.name}")]
    os.utime(tar, ns=(1, 1))
    os.utime(tmp_path / "1.jpg", ns=(1, 1))
    assert not set(before) & {unit.identity for unit in units(tmp_path)}


# How sources are named


def test_brace_patterns_and_lists_and_several_sources(tmp_path: Path) -> None:
    for number in range(4):
        pack(tmp_path / f"{number:05d}.tar", [("0.jpg", jpeg(number))])
    (tmp_path / "list.txt").write_text(f"\ufeff# two\n{tmp_path}/{{00001..00002}}.tar\n\n  {tmp_path}/00000.tar\n")
    assert [Path(unit.source).stem for unit in units(f"{tmp_path}/{{00003..00002}}.tar", f"@{tmp_path}/list.txt")] == [
        "00003",
        "00002",
        "00001",
        "00002",
        "00000",
    ]


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/", recursive=True)


def test_urls_are_read_as_files_are(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    tar = pack(tmp_path / "00000.tar", [("0.jpg", jpeg(0)), ("0.txt", b"caption")])
    memory.pipe("/crawl/00000.tar", tar.read_bytes())
    memory.pipe("/crawl/00000_stats.json", json.dumps({"successes": 2}).encode())
    memory.pipe("/crawl/deep/1.jpg", jpeg(1))
    memory.pipe("/crawl/deep/1.txt", b"one")
    memory.pipe("/list.txt", b"memory://crawl/00000.tar\n")
    assert [(r.member, r.sidecars) for r in records("memory://crawl")] == [
        ("0.jpg", {"txt": b"caption"}),
        ("", {}),
        ("deep/1.jpg", {"txt": b"one"}),
    ]
    assert units("@memory://list.txt") == units("memory://crawl/00000.tar")
    assert units(f"file://{tar}") == units(tar)
    memory.pipe("/crawl/00000.tar", tar.read_bytes()[:512])
    assert [unit.source for unit in units("memory://crawl")] == ["memory:///crawl/00000.tar", "memory:///crawl"]


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("{tmp}/nowhere", "No such file"),
        ("{tmp}/a.jpg", "name the folder that holds it"),
        ("{tmp}/a.tar.gz", "is compressed"),
        ("{tmp}/empty.parquet", "cannot be read as parquet"),
        ("{tmp}/table.parquet", "no column of image bytes"),
        ("{tmp}/{{0..1", "not a brace pattern"),
        ("{tmp}/{{0..200000}}.tar", "more than 100000"),
        ("@{tmp}/nowhere", "cannot be read"),
        ("", "The name of a source is empty"),
        ("{tmp}/*.tar", "name several by braces"),
        ("@{tmp}/nested.txt", "cannot name another list"),
        ("pipe:touch {tmp}/pwned", "runs no commands"),
        ("nosuch://bucket/a.tar", "nosuch"),
        ("memory://nowhere.tar", "cannot be read"),
        ("{tmp}/pool", "is the pool itself"),
        ("{tmp}/pool/00000.tar", "is the pool itself"),
    ],
)
def test_bad_sources_are_one_sentence(tmp_path: Path, source: str, sentence: str) -> None:
    for name in ("a.jpg", "a.tar.gz", "empty.parquet"):
        (tmp_path / name).write_bytes(b"")
    pq.write_table(pa.table({"key": ["0"]}), tmp_path / "table.parquet")
    (tmp_path / "nested.txt").write_text("@other.txt\n")
    pack(tmp_path / "pool/00000.tar", [])
    with pytest.raises(BadInput, match=sentence):
        units(source.format(tmp=tmp_path), pool=tmp_path / "pool")
    assert not (tmp_path / "pwned").exists()


def test_a_pool_below_a_source_is_skipped(tmp_path: Path) -> None:
    pack(tmp_path / "pool/00000.tar", [("0.jpg", jpeg())])
    pack(tmp_path / "crawl.tar", [("0.jpg", jpeg())])
    assert [Path(unit.source).name for unit in units(tmp_path, pool=tmp_path / "pool")] == ["crawl.tar"]
