"""Tars, parquet files and folders made to do harm: nothing is written elsewhere, run, or waited for."""

import io
import json
import os
import pickle
import shutil
import tarfile
import tracemalloc
import zipfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from pipelines import ingest
from pipelines.errors import BadInput
from pipelines.ingest import IngestConfig, Summary
from pipelines.ingest.record import Record
from pipelines.ingest.records import read
from pipelines.ingest.sources import TarUnit, Unit, find
from pipelines.pool.manifest import Pool
from pipelines.storage.shards import read_samples
from tests.pipelines.ingest.crawls import picture
from tests.pipelines.storage.tar_bytes import END, LAST, block, member, pax


def run(pool: Path, source: Path, **options: object) -> Summary:
    return ingest.run(IngestConfig(sources=(str(source),), pool=pool, jobs=1, **options))  # type: ignore[arg-type]


def rejects(pool: Path) -> list[tuple[str, str]]:
    rows = [row for path in sorted(pool.glob("rejects/*.parquet")) for row in pq.read_table(path).to_pylist()]
    return [(row["member"], row["reason"]) for row in rows]


def records(path: Path) -> list[Record]:
    units = find([str(path)], shard_size=1000, pool=Path("/nowhere"))
    return [record for unit in units if isinstance(unit, Unit) for record in read(unit, 1 << 20)]


# Tars


def test_nothing_in_a_tar_writes_outside_the_pool(tmp_path: Path) -> None:
    outside, crawl = tmp_path / "outside", tmp_path / "crawl"
    for folder in (outside, crawl):
        folder.mkdir()
    (outside / "mine.jpg").write_bytes(b"mine")
    image = picture(0)
    entries = [
        member("../outside/up.jpg", image),
        member(f"{outside}/absolute.jpg", image),
        block("door", tarfile.SYMTYPE, 0, str(outside)),
        member("door/through.jpg", picture(1)),
        block("mine.jpg", tarfile.SYMTYPE, 0, str(outside / "mine.jpg")),
        block("hard.jpg", tarfile.LNKTYPE, 0, str(outside / "mine.jpg")),
        block("null.jpg", tarfile.CHRTYPE, 0),
        block("disk.jpg", tarfile.BLKTYPE, 0),
        block("pipe.jpg", tarfile.FIFOTYPE, 0),
        member("mine.jpg", picture(2)),  # would be written through the link
        pax(path="../outside/pax.jpg") + member("innocent.jpg", image),
        member("a.../x.jpg", picture(3)),
    ]
    (crawl / "0.tar").write_bytes(b"".join(entries) + END)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    summary = run(tmp_path / "pool", crawl)
    assert summary.rejected == {"not_a_file": 6, "unsafe_name": 3} and summary.kept == 3
    assert {path: path.read_bytes() for path in before} == before
    assert {path.parts[len(tmp_path.parts)] for path in tmp_path.rglob("*")} == {"outside", "crawl", "pool"}
    assert list(outside.iterdir()) == [outside / "mine.jpg"]
    with tarfile.open(tmp_path / "pool/00000.tar") as tar:
        assert all(info.isreg() and info.name.startswith("00000") for info in tar)


def test_equal_names_and_archives_in_archives(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as packed:
        packed.writestr("1.jpg", picture(9))
    entries = [
        *(member("same.jpg", picture(seed)) for seed in range(3)),
        member("nested.tar", member("deep.jpg", picture(4)) + END),
        member("nested.jpg", member("deep.jpg", picture(4)) + END),
        member("nested.zip", inner.getvalue()),
        member("same.jpg", picture(5)),
    ]
    (tmp_path / "0.tar").write_bytes(b"".join(entries) + END)
    summary = run(tmp_path / "pool", tmp_path / "0.tar")
    assert [row["member"] for row in Pool(tmp_path / "pool").rows("00000").to_pylist()] == ["same.jpg"] * 4
    assert rejects(tmp_path / "pool") == [("nested.jpg", "not_an_image")]  # the two others are files beside it
    assert summary.read == 5


@pytest.mark.parametrize("empty", ["zeros", "tarfile", "parquet"])
def test_a_shard_of_no_samples_is_a_shard(tmp_path: Path, empty: str) -> None:
    crawl = tmp_path / "crawl"
    crawl.mkdir()
    (crawl / "1.tar").write_bytes(LAST.replace(b"last.jpg", b"9999.png") + END)
    if empty == "zeros":
        (crawl / "0.tar").write_bytes(END)
    elif empty == "tarfile":
        tarfile.open(crawl / "0.tar", "w").close()
    else:
        pq.write_table(pa.table({"jpg": pa.array([], pa.binary())}), crawl / "0.parquet")
    summary = run(tmp_path / "pool", crawl)
    assert (summary.read, summary.kept) == (1, 0)
    assert run(tmp_path / "pool", crawl).read == 0


# Many


class Endless(io.RawIOBase):
    """A tar of `num` members that is never in memory as a whole."""

    def __init__(self, num: int, name: str, content: bytes) -> None:
        self._members = chain((member(name.format(number), content) for number in range(num)), [END])
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        while len(self._rest) < size:
            following = next(self._members, None)
            if following is None:
                break
            self._rest += following
        found, self._rest = self._rest[:size], self._rest[size:]
        return found


@pytest.mark.parametrize(
    ("name", "num"),
    [("{}.jpg", 5000), ("same.{}.jpg", 5000), ("same.{}.npy", 5000), ("same.jpg", 5000)],
    ids=["samples", "images of one sample", "files beside one sample", "one name"],
)
def test_memory_does_not_grow_with_the_members_of_a_tar(tmp_path: Path, name: str, num: int) -> None:
    def peak(count: int) -> int:
        path = tmp_path / f"{count}.tar"
        with path.open("wb") as file:
            shutil.copyfileobj(Endless(count, name, bytes(3000)), file)
        unit = TarUnit(source=str(path), part="", fingerprint="", num_bytes=0)
        tracemalloc.start()
        found = sum(1 for _ in read(unit, 1 << 20))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert found == (count if name.endswith("jpg") else 1)
        return most

    few, many = peak(num // 5), peak(num)
    assert many < few + (1 << 20) and many < 8 << 20


def test_metadata_may_list_anything(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(member("0.jpg", picture(0)) + END)
    for listed in (10**15, -5, 1e400, "many", None, [1]):
        (tmp_path / "0_stats.json").write_text(json.dumps({"successes": listed}))
        assert len(records(tmp_path / "0.tar")) == 1
    for stats in (b"\xff", b"[" * 100_000, b"[]", b"7", b""):
        (tmp_path / "0_stats.json").write_bytes(stats)
        assert len(records(tmp_path / "0.tar")) == 1
    for table in ({"uid": ["a"]}, {"key": ["0"], "status": [7]}, {"key": [[1]], "status": ["no"]}):
        pq.write_table(pa.table(table), tmp_path / "0.parquet")
        assert len(records(tmp_path / "0.tar")) == 1


# Parquet


def invalid_text() -> pa.Array:
    return pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 3], np.int32)), pa.py_buffer(b"\xff\xfe!")]
    )


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"image": [{"bytes": picture(0), "path": 7}]}),
        pa.table({"image": [{"bytes": picture(0), "path": [["deep"]]}]}),
        pa.table({"image": [{"bytes": picture(0), "path": "../../\x1b[2J\n" + "x" * 9000}]}),
        pa.table({"image": pa.StructArray.from_arrays([[picture(0)], invalid_text()], ["bytes", "path"])}),
        pa.table({"jpg": [picture(0)], "caption": invalid_text(), "number": [float("inf")], "list": [[[1]]]}),
        pa.table({"my.image": [{"bytes": picture(0), "path": None}], "my": ["x"], "my.": [1]}),
        pa.Table.from_arrays([pa.array([picture(0)]), pa.array(["a"]), pa.array([1])], ["jpg", "t", "t"]),
    ],
    ids=["path-number", "path-list", "path-control", "path-bytes", "text-bytes", "dots", "equal-names"],
)  # fmt: skip
def test_an_image_is_read_whatever_is_beside_it(tmp_path: Path, table: pa.Table) -> None:
    pq.write_table(table, tmp_path / "a.parquet")
    assert run(tmp_path / "pool", tmp_path / "a.parquet").kept == 1
    (row,) = Pool(tmp_path / "pool").rows("00000").to_pylist()
    assert row["member"].isprintable() and len(row["member"]) <= 4096
    ((_, sample),) = read_samples(tmp_path / "pool/00000.tar")
    assert sample["jpg"] == picture(0) and isinstance(json.loads(sample.get("json", b"{}")), dict)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["text"]),
        pa.array([[[picture(0)]]]),
        pa.array([1]),
        pa.array([{"bytes": "text", "path": "a"}]),
        pa.array([{"bytes": {"bytes": picture(0)}}]),
        pa.array([b"abcd"], pa.binary(4)),
    ],
    ids=["text", "list of lists", "number", "struct of text", "struct of struct", "fixed"],
)
def test_a_column_of_another_type_is_no_column_of_images(tmp_path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match=r"no column of image bytes|its column 'image' is text"):
        run(tmp_path / "pool", tmp_path / "a.parquet")


def test_two_columns_of_one_name_are_no_column_of_images(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array([picture(0)])] * 2, ["jpg", "jpg"]), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match="no column of image bytes"):
        run(tmp_path / "pool", tmp_path / "a.parquet")


def test_rows_without_an_image_are_on_record(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [None, {"bytes": None, "path": "b"}, {"bytes": b"", "path": "c"}, {"bytes": picture(0), "path": "d"}]
    pq.write_table(pa.table({"image": pa.array(rows, kind)}), tmp_path / "a.parquet")
    assert run(tmp_path / "pool", tmp_path / "a.parquet").kept == 1
    assert rejects(tmp_path / "pool") == [("row 0", "missing"), ("b", "missing"), ("c", "empty")]


# Code


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def bomb(tmp_path: Path) -> Iterator[bytes]:
    folder = tmp_path / "unpickled"
    yield pickle.dumps(Bomb(folder))
    assert not folder.exists()


PICKLES = ("pyd", "pkl", "pickle", "pth", "pt", "deep.pkl", "pkl.gz", "joblib", "PKL")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its file to the gc
def test_no_pickle_is_loaded_by_us_or_by_readers_of_the_pool(tmp_path: Path, bomb: bytes) -> None:
    members = [member("0.jpg", picture(0)), *(member(f"0.{suffix}", bomb) for suffix in PICKLES)]
    members += [member("0.txt", b"caption"), member("1.jpg", bomb), member("2.pkl", bomb)]
    (tmp_path / "0.tar").write_bytes(b"".join(members) + END)
    run(tmp_path / "pool", tmp_path / "0.tar")
    (sample,) = webdataset.WebDataset(str(tmp_path / "pool/00000.tar"), shardshuffle=False).decode("pil")
    assert {name for name in sample if not name.startswith("__")} == {"jpg", "txt"}
    assert rejects(tmp_path / "pool") == [("1.jpg", "not_an_image"), ("2.pkl", "not_an_image")]


def test_a_pickle_in_parquet_is_bytes(tmp_path: Path, bomb: bytes) -> None:
    table = pa.table({"image": [bomb, picture(0)], "pickle": [bomb, bomb]})
    pq.write_table(table.replace_schema_metadata({b"PANDAS": bomb, b"pandas": b"{}"}), tmp_path / "a.parquet")
    run(tmp_path / "pool", tmp_path / "a.parquet")
    assert rejects(tmp_path / "pool") == [("row 0", "not_an_image")]


@pytest.mark.parametrize("source", ["pipe:{cmd}", "{{pipe:{cmd},x.tar}}", "@{tmp}/list.txt", "PIPE:{cmd}", "{cmd}|"])
def test_no_command_is_run_for_a_source(tmp_path: Path, source: str) -> None:
    command = f"touch {tmp_path}/run"
    (tmp_path / "list.txt").write_text(f"pipe:{command}\n")
    with pytest.raises(BadInput):
        run(tmp_path / "pool", Path(source.format(cmd=command, tmp=tmp_path)))
    assert not (tmp_path / "run").exists() and not (tmp_path / "pool").exists()


def test_names_that_a_shell_would_run_are_names(tmp_path: Path) -> None:
    crawl = tmp_path / "crawl"
    crawl.mkdir()
    names = ["$(touch run).jpg", "`touch run`.jpg", "a;touch run.jpg", "-rf.jpg", "pipe:touch run.jpg", "| touch run"]
    for seed, name in enumerate(names):
        (crawl / name).write_bytes(picture(seed))
    (crawl / "pipe:touch run.tar").write_bytes(member("$(touch run).jpg", picture(99)) + END)
    assert run(tmp_path / "pool", crawl).kept == len(names) + 1
    assert not list(tmp_path.rglob("run")) and not Path("run").exists()


# Folders


def test_links_in_a_folder_are_read_and_never_written_through(tmp_path: Path) -> None:
    crawl, outside = tmp_path / "crawl", tmp_path / "outside"
    for folder in (crawl, outside):
        folder.mkdir()
    (outside / "photo.jpg").write_bytes(picture(0))
    (outside / "secret.txt").write_bytes(b"not an image")
    (crawl / "photo.jpg").symlink_to(outside / "photo.jpg")
    (crawl / "photo.txt").symlink_to("/dev/zero")
    (crawl / "secret.jpg").symlink_to(outside / "secret.txt")
    (crawl / "zero.jpg").symlink_to("/dev/zero")
    (crawl / "folder").symlink_to(outside)
    (crawl / "self.jpg").symlink_to("self.jpg")
    before = {path: path.read_bytes() for path in outside.iterdir()}
    summary = run(tmp_path / "pool", crawl)
    assert rejects(tmp_path / "pool") == [
        ("secret.jpg", "not_an_image"),
        ("self.jpg", "missing"),
        ("zero.jpg", "not_a_file"),
    ]
    assert summary.kept == 1 and len(summary.notes) == 1
    assert list(read_samples(tmp_path / "pool/00000.tar")) == [("000000000", {"jpg": picture(0)})]
    assert {path: path.read_bytes() for path in outside.iterdir()} == before
    assert not any(path.is_symlink() for path in (tmp_path / "pool").rglob("*"))
