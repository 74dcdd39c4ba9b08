"""Tars made to do harm: false sizes, endless extensions, sparse files. Nothing raises, or takes time or memory."""

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from pipelines.images.rejects import Reason, Reject
from pipelines.storage.tar import BLOCK, read_tar
from tests.pipelines.storage.tar_bytes import END, LAST, block, member, pax


def unpack(content: bytes) -> list[tuple[str, bytes | Reason]]:
    members = read_tar(io.BytesIO(content), 1 << 20)
    return [(m.name, m.content.reason if isinstance(m.content, Reject) else m.content) for m in members]


@pytest.mark.parametrize(
    "before",
    [
        block("././@LongLink", tarfile.GNUTYPE_LONGNAME, 8 << 30),
        member("././@LongLink", b"a", tarfile.GNUTYPE_LONGNAME) * 3000,
        pax(path="a") * 3000,
        member("././@LongLink", b"a", tarfile.GNUTYPE_LONGNAME)
        + block("././@LongLink", tarfile.GNUTYPE_LONGNAME, 8 << 30),
        pax(size=-512),
        pax(size="1" * 4000),
        pax(size="one"),
    ],
    ids=["long", "long-chain", "pax-chain", "long-behind-short", "negative", "endless", "word"],
)
def test_extensions_that_make_no_sense_end_the_archive(before: bytes) -> None:
    assert unpack(LAST + before + LAST + END) == [("last.jpg", b"last"), ("", Reason.INCOMPLETE_ARCHIVE)]


@pytest.mark.parametrize("records", [b"1" * 500_000, b"9 " * 100_000, b"\xff" * 9000, b"0 =\n" * 9000, b"5 a=b", b"="])
def test_pax_records_that_make_no_sense_are_passed_over_at_once(records: bytes) -> None:
    """The first keeps Python's own tarfile busy for hours."""
    assert unpack(member("pax", records, tarfile.XHDTYPE) + LAST + END) == [("last.jpg", b"last")]


def test_names_and_sizes_may_come_from_pax() -> None:
    content = block("short", tarfile.REGTYPE, 0) + b"x" * 700 + bytes(2 * BLOCK - 700)
    assert unpack(pax(path="long/ü.jpg", size=700, mtime=1.5) + content + LAST + END) == [
        ("long/ü.jpg", b"x" * 700),
        ("last.jpg", b"last"),
    ]


def test_a_gigantic_name_is_unsafe_and_is_not_kept_whole() -> None:
    for name in ("n" * 900_000, "d/" * 4000 + "a.jpg"):
        (found, reason), last = unpack(pax(path=name) + LAST + LAST + END)
        assert reason is Reason.UNSAFE_NAME and len(found) < 5000 and last == ("last.jpg", b"last")


def test_a_member_without_a_name_is_unsafe_whatever_it_is() -> None:
    for kind, reason in ((tarfile.REGTYPE, Reason.UNSAFE_NAME), (tarfile.SYMTYPE, Reason.NOT_A_FILE)):
        content = b"" if kind == tarfile.SYMTYPE else b"x"
        assert unpack(member("", content, kind) + LAST + END) == [("(no name)", reason), ("last.jpg", b"last")]
    assert unpack(pax(path="") + LAST + LAST + END) == [("(no name)", Reason.UNSAFE_NAME), ("last.jpg", b"last")]


def test_sparse_members_are_passed_over_without_unfolding() -> None:
    for version in ({"GNU__sparse__major": 1, "GNU__sparse__minor": 0}, {"GNU__sparse__size": 10**15}):
        sparse = pax(**version, GNU__sparse__name="holes.jpg", GNU__sparse__realsize=10**15)
        for stored in (b"1\n0\n4\n", b"9" * 100_000):  # its map of what is where, or none
            found = unpack(sparse + member("GNUSparseFile.0/holes.jpg", stored) + LAST + END)
            assert found == [("holes.jpg", Reason.NOT_A_FILE), ("last.jpg", b"last")]


@pytest.mark.skipif(not shutil.which("tar"), reason="there is no tar program here")
@pytest.mark.parametrize("layout", ["gnu", "pax"])
def test_sparse_members_as_gnu_tar_writes_them(tmp_path: Path, layout: str) -> None:
    with (tmp_path / "holes.jpg").open("wb") as file:
        for number in range(40):  # more pieces than the header has room for
            file.seek(number << 20)
            file.write(b"data")
    (tmp_path / "last.jpg").write_bytes(b"last")
    command = ["tar", "--sparse", f"--format={layout}", "-cf", "a.tar", "holes.jpg", "last.jpg"]
    if subprocess.run(command, cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("this tar program knows no sparse files")
    content = (tmp_path / "a.tar").read_bytes()
    assert len(content) < 1 << 20
    assert unpack(content) == [("holes.jpg", Reason.NOT_A_FILE), ("last.jpg", b"last")]


def test_sizes_that_lie_lose_what_follows_and_say_so() -> None:
    content = member("a.jpg", b"a" * 1500)
    larger, smaller = block("a.jpg", tarfile.REGTYPE, 1 << 19), block("a.jpg", tarfile.REGTYPE, 100)
    assert unpack(larger + content[BLOCK:] + LAST + END) == [("a.jpg", Reason.INCOMPLETE_ARCHIVE)]
    assert unpack(smaller + content[BLOCK:] + LAST + END) == [
        ("a.jpg", b"a" * 100),
        ("", Reason.INCOMPLETE_ARCHIVE),
    ]
    assert unpack(block("a.jpg", tarfile.REGTYPE, 8**11 - 1) + LAST + END) == [
        ("a.jpg", Reason.TOO_MANY_BYTES),
        ("", Reason.INCOMPLETE_ARCHIVE),
    ]


def test_unknown_kinds_of_members_are_passed_over_with_their_data() -> None:
    assert unpack(member("odd.jpg", b"?" * 700, b"Z") + LAST + END) == [
        ("odd.jpg", Reason.NOT_A_FILE),
        ("last.jpg", b"last"),
    ]
