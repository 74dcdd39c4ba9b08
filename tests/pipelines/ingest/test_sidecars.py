"""Captions and metadata go to their own image: none is multiplied, lost, or given to another."""

import json
from pathlib import Path
from unicodedata import normalize

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.images.rejects import Reason, Reject
from pipelines.ingest.record import Record
from pipelines.ingest.records import read
from pipelines.ingest.sources import Unit, find
from pipelines.storage.shards import read_samples
from tests.pipelines.ingest.crawls import Files, pack, picture, run


def records(source: Path) -> dict[str, Record]:
    units = find([str(source)], shard_size=1000, pool=Path("/nowhere"))
    found = [record for unit in units if isinstance(unit, Unit) for record in read(unit, 1 << 20)]
    assert len({record.member for record in found}) == len(found)
    return {record.member: record for record in found}


def reason(record: Record) -> str:
    return record.content.reason if isinstance(record.content, Reject) else "image"


@pytest.mark.parametrize("order", ["image first", "image last"])
@pytest.mark.parametrize("key", ["www.host.example_{}", "2024.05.{}-cam", "{}.jpg.large", "plain-{}"])
def test_names_with_dots_multiply_nothing(tmp_path: Path, key: str, order: str) -> None:
    files: Files = []
    for number in range(1300):
        name = key.format(number)
        sample = [(f"{name}.jpg", b"\xff\xd8\xff%d" % number), (f"{name}.txt", b"%d" % number), (f"{name}.json", b"{}")]
        files += sample if order == "image first" else sample[::-1]
    found = records(pack(tmp_path / "0.tar", files))
    assert len(found) == 1300
    for number in range(1300):
        record = found[key.format(number) + ".jpg"]
        assert record.content == b"\xff\xd8\xff%d" % number
        assert record.sidecars == {"txt": b"%d" % number, "json": b"{}"}


def test_what_belongs_to_a_missing_image_is_given_to_no_other(tmp_path: Path) -> None:
    files = [
        ("a.b_1.jpg", b"1"),
        ("a.b_1.txt", b"one"),
        ("a.b_2.json", b"{}"),
        ("a.b_2.txt", b"two"),
        ("a.b_3.npy", b""),
    ]
    found = records(pack(tmp_path / "0.tar", files))
    assert found["a.b_1.jpg"].sidecars == {"txt": b"one"}
    assert {name: reason(record) for name, record in found.items()} == {
        "a.b_1.jpg": "image",
        "a.b_2.json": Reason.MISSING,
        "a.b_3.npy": Reason.NOT_AN_IMAGE,
    }


def test_several_images_of_a_sample_share_what_has_its_name_alone(tmp_path: Path) -> None:
    files = [("1.left.jpg", b"l"), ("1.json", b"{}"), ("1.right.jpg", b"r"), ("1.left.txt", b"left"), ("2.png", b"2")]
    found = records(pack(tmp_path / "0.tar", files))
    assert found["1.left.jpg"].sidecars == {"txt": b"left", "json": b"{}"}
    assert found["1.right.jpg"].sidecars == {"json": b"{}"}
    assert found["2.png"].sidecars == {}


def test_one_name_twice_is_two_samples(tmp_path: Path) -> None:
    files = [("a.jpg", b"1"), ("a.txt", b"one"), ("a.jpg", b"2"), ("a.txt", b"two")]
    units = find([str(pack(tmp_path / "0.tar", files))], shard_size=9, pool=Path("/nowhere"))
    found = [record for unit in units if isinstance(unit, Unit) for record in read(unit, 1 << 20)]
    assert found == [Record("a.jpg", b"1", {"txt": b"one"}), Record("a.jpg", b"2", {"txt": b"two"})]


def test_readmes_and_what_file_managers_leave_are_no_images(tmp_path: Path) -> None:
    names = ["README.md", "LICENSE", "Thumbs.db", "desktop.ini", ".DS_Store", "labels.csv", "dataset_info.json"]
    files = [(name, b"text") for name in names]
    assert set(records(pack(tmp_path / "0.tar", [*files, ("1.jpg", b"1"), ("1.md", b"#")]))) == {"1.jpg"}
    for name, content in [*files, ("1.jpg", picture(0))]:
        (tmp_path / "crawl").mkdir(exist_ok=True)
        (tmp_path / "crawl" / name).write_bytes(content)
    summary = run(tmp_path / "pool", tmp_path / "crawl")
    assert (summary.read, summary.kept, summary.rejected) == (1, 1, {})
    assert summary.notes == (
        f"{tmp_path}/crawl: skipped 6 files that are no images (LICENSE, README.md, Thumbs.db, ...). A table gives its "
        "rows to the images if it is called metadata.csv and has a column file_name.",
    )


def test_captions_in_a_folder_are_found_in_any_spelling(tmp_path: Path) -> None:
    composed, decomposed = (normalize(form, "café") for form in ("NFC", "NFD"))
    for name, text in {
        "0.JPG": "", "0.TXT": "zero", "1.jpg": "", "1.caption": "one", "2.jpg": "", "2.txt": "two",
        "2.caption": "kohya",
        f"{composed}.jpg": "", f"{decomposed}.txt": "coffee", "a.b.jpg": "", "a.b.txt": "ab", "a.jpg": "", "a.txt": "a",
        "3.jpg": "", "3.jpg.json": "{}", "3.json": "[]", "3.JPG.txt": "not a name of 3.jpg",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text or name)
    found = {name: dict(record.sidecars) for name, record in records(tmp_path).items()}
    assert found == {
        "0.JPG": {"txt": b"zero"}, "1.jpg": {"txt": b"one"}, "2.jpg": {"txt": b"two", "caption": b"kohya"},
        f"{composed}.jpg": {"txt": b"coffee"}, "a.b.jpg": {"txt": b"ab"}, "a.jpg": {"txt": b"a"},
        "3.jpg": {"json": b"[]", "jpg.json": b"{}", "jpg.txt": b"not a name of 3.jpg"},
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_the_tables_of_hugging_face_folders_describe_their_images(tmp_path: Path, kind: str) -> None:
    (tmp_path / "crawl/train/deep").mkdir(parents=True)
    rows = [{"file_name": name, "text": f"caption of {name}"} for name in ("0.jpg", "deep/1.jpg", "gone.jpg")]
    for number, name in enumerate(("0.jpg", "deep/1.jpg", "2.jpg")):
        (tmp_path / "crawl/train" / name).write_bytes(picture(number))
    (tmp_path / "crawl/train/deep/1.json").write_text('{"own": 1}')
    table = tmp_path / f"crawl/train/metadata.{kind}"
    if kind == "jsonl":
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "csv":
        table.write_text("file_name,text\n" + "".join(f'{row["file_name"]},"{row["text"]}"\n' for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), table)
    summary = run(tmp_path / "pool", tmp_path / "crawl")
    assert (summary.read, summary.kept) == (3, 3)
    assert summary.notes == (f"{table}: 1 of 3 rows name a file that is not there.",)
    # By name: 0.jpg, 2.jpg, deep/1.jpg.
    listed, alone, both = (sample for _, sample in read_samples(tmp_path / "pool/00000.tar"))
    assert "json" not in alone
    assert json.loads(listed["json"]) == rows[0]
    assert both["json"] == b'{"own": 1}' and json.loads(both["metadata.json"]) == rows[1]
