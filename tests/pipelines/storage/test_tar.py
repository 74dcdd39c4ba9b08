"""Foreign tars are read whatever they hold; our own are read by everyone."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset

from pipelines.errors import CorruptShard
from pipelines.images.rejects import Reason, Reject
from pipelines.storage.shards import ShardWriter, read_samples, read_spans
from pipelines.storage.tar import is_unsafe, read_tar

FILES = [
    ("a.jpg", b"x" * 700),
    ("a.json", b"{}"),
    ("a.txt", b""),
    ("deep/er/b.png", b"y" * 512),
    ("c.webp", b"z" * 1023),
]


def pack(files: list[tuple[str, bytes]], **options: object) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **options) as tar:  # type: ignore[call-overload]
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def unpack(content: bytes, max_bytes: int = 1 << 20) -> list[tuple[str, bytes | Reason]]:
    members = read_tar(io.BytesIO(content), max_bytes)
    return [(m.name, m.content.reason if isinstance(m.content, Reject) else m.content) for m in members]


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_layout_is_read_as_tarfile_reads_it(layout: int) -> None:
    files = [*FILES, ("n" * 90 + "/" + "m" * 60 + ".jpg", b"prefix"), ("ü/日本.jpg", b"unicode")]
    if layout != tarfile.USTAR_FORMAT:
        files.append(("long/" * 60 + "d.jpg", b"long"))
    assert unpack(pack(files, format=layout)) == files


def test_folders_are_passed_over_and_special_entries_are_rejects() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind in [
            ("folder", tarfile.DIRTYPE),
            ("link.jpg", tarfile.SYMTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
            ("null.jpg", tarfile.CHRTYPE),
            ("pipe.jpg", tarfile.FIFOTYPE),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        last = tarfile.TarInfo("last.jpg")
        last.size = 4
        tar.addfile(last, io.BytesIO(b"last"))
    rejects = [(name, Reason.NOT_A_FILE) for name in ("link.jpg", "hard.jpg", "null.jpg", "pipe.jpg")]
    assert unpack(out.getvalue()) == [*rejects, ("last.jpg", b"last")]


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../up.jpg", "a/../../up.jpg", "a\\..\\up.jpg", "bell\a.jpg", "two\nlines.jpg"]
)
def test_unsafe_names_are_rejects(name: str) -> None:
    assert is_unsafe(name)
    assert unpack(pack([(name, b"x"), ("next.jpg", b"y")])) == [(name, Reason.UNSAFE_NAME), ("next.jpg", b"y")]


@pytest.mark.parametrize("name", ["a.jpg", "./a.jpg", "a..b.jpg", "a/b/c.jpg", "ideographic\u3000space.jpg", "..."])
def test_odd_names_are_safe(name: str) -> None:
    assert not is_unsafe(name)


def test_large_members_are_skipped_and_names_in_no_encoding_are_kept_printable() -> None:
    content = pack([("large.jpg", b"x" * 5000), ("n\udcff.jpg", b"y")], format=tarfile.GNU_FORMAT)
    assert unpack(content, max_bytes=4999) == [("large.jpg", Reason.TOO_MANY_BYTES), ("n\\xff.jpg", b"y")]


def test_a_tar_cut_anywhere_never_raises_and_loses_only_what_was_cut() -> None:
    whole = pack(FILES)[: 512 * 14]
    for length in range(0, len(whole), 64):
        members = unpack(whole[:length])
        complete = [member for member in members if isinstance(member[1], bytes)]
        assert complete == FILES[: len(complete)]
        if len(complete) < len(members):
            assert members[-1][1] is Reason.INCOMPLETE_ARCHIVE
            assert len(members) == len(complete) + 1


@pytest.mark.parametrize("damage", [b"garbage", b"\xff" * 512, b"<html>" * 200])
def test_what_is_not_a_tar_is_one_nameless_reject(damage: bytes) -> None:
    assert unpack(damage) == [("", Reason.INCOMPLETE_ARCHIVE)]


def test_a_damaged_header_ends_the_archive() -> None:
    content = bytearray(pack(FILES))
    content[1536 + 3] ^= 1  # in the name of the second member
    assert unpack(bytes(content)) == [FILES[0], ("", Reason.INCOMPLETE_ARCHIVE)]


def test_a_hostile_size_is_no_allocation() -> None:
    content = bytearray(pack([("n" * 200 + ".jpg", b"x")], format=tarfile.GNU_FORMAT))
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 8 << 30
    content[:512] = info.tobuf(tarfile.GNU_FORMAT)
    assert unpack(bytes(content)) == [("", Reason.INCOMPLETE_ARCHIVE)]


def write(path: Path) -> list[int]:
    with ShardWriter(path) as shard:
        return [
            shard.add(name, content)
            for name, content in [
                ("000000000.jpg", b"a" * 100),
                ("000000000.json", b"{}"),
                ("000000001.png", b"b" * 512),
                ("000000001.cls", b"7"),
            ]
        ]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its file to the gc
def test_a_shard_is_read_by_tarfile_by_webdataset_and_by_us(tmp_path: Path) -> None:
    path = tmp_path / "00000.tar"
    offsets = write(path)
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        assert [m.offset_data for m in members] == offsets
        assert {(m.mtime, m.uid, m.gid, m.mode) for m in members} == {(0, 0, 0, 0o644)}
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [(s["__key__"], s.get("jpg"), s.get("png")) for s in samples] == [
        ("000000000", b"a" * 100, None),
        ("000000001", None, b"b" * 512),
    ]
    assert list(read_samples(path)) == [
        ("000000000", {"jpg": b"a" * 100, "json": b"{}"}),
        ("000000001", {"png": b"b" * 512, "cls": b"7"}),
    ]
    assert list(read_spans(path, [(offsets[2], 512), (offsets[0], 100)])) == [b"b" * 512, b"a" * 100]


def test_an_empty_shard_is_a_tar(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "00000.tar"):
        pass
    with tarfile.open(tmp_path / "00000.tar") as tar:
        assert tar.getmembers() == []


def test_a_failed_shard_has_no_end_mark(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), ShardWriter(tmp_path / "00000.tar") as shard:
        shard.add("000000000.jpg", b"x")
        1 / 0  # noqa: B018
    assert (tmp_path / "00000.tar").stat().st_size == 1024


@pytest.mark.parametrize(
    "read",
    [lambda path: list(read_spans(path, [(512, 2000)])), lambda path: list(read_samples(path))],
    ids=["spans", "samples"],
)
def test_a_cut_shard_of_ours_is_one_sentence(tmp_path: Path, read: Callable[[Path], object]) -> None:
    path = tmp_path / "00000.tar"
    write(path)
    path.write_bytes(path.read_bytes()[:1800])
    with pytest.raises(CorruptShard, match=r"00000\.tar: "):
        read(path)
    path.unlink()
    with pytest.raises(CorruptShard, match="is missing"):
        read(path)
