"""Any tar is read, whatever it holds, as far as it can be read."""

import io
import tarfile

import pytest

from pipelines.images.rejects import Reason, Reject
from pipelines.storage.tar import Member, is_unsafe, read_tar
from tests.pipelines.storage.tar_bytes import END, member

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


def test_joined_archives_are_read_as_one() -> None:
    archives = [member(f"{number}.jpg", bytes([number]) * 700) + END + bytes(512 * 16) for number in range(3)]
    found = list(read_tar(io.BytesIO(b"".join(archives)), 1 << 20))
    assert found == [Member(f"{number}.jpg", bytes([number]) * 700) for number in range(3)]


def test_what_follows_the_end_of_an_archive_is_on_record() -> None:
    (image, end) = read_tar(io.BytesIO(member("0.jpg", b"x") + END + b"garbage" * 200), 1 << 20)
    assert image.name == "0.jpg" and end.name == ""
    assert end.content == Reject(Reason.INCOMPLETE_ARCHIVE, "no tar header at byte 2048")


@pytest.mark.parametrize(("content", "kind"), [(b"<!doctype html>", "HTML"), (b"\xff\xd8\xff", "an image (jpg)")])
def test_a_file_that_is_no_tar_is_said_to_be_what_it_is(content: bytes, kind: str) -> None:
    (end,) = read_tar(io.BytesIO(content.ljust(2048, b" ")), 1 << 20)
    assert end.content == Reject(Reason.INCOMPLETE_ARCHIVE, f"no tar archive, but {kind}")
