import json
from pathlib import Path
from typing import Any

import pytest

from pipelines import verify
from pipelines.export.sample import describe, parsed, uid_of
from pipelines.storage.json_text import to_json
from tests.pipelines.export.exports import PICTURE, export_one, read_plainly


def test_a_uid_is_the_crawls_own_where_it_has_one() -> None:
    own = "0123456789abcdef0123456789abcdef"
    assert uid_of(parsed(json.dumps({"uid": own}).encode()), "f" * 64) == own
    for metadata in (None, b"{}", b'{"uid": 7}', b'{"uid": "zz"}', b"[1]", b"\xff"):
        assert uid_of(parsed(metadata), "f" * 64) == "f" * 32


def test_the_crawls_metadata_are_not_lost_whatever_they_are() -> None:
    row = {
        "key": "000000001", "format": "png", "width": 2, "height": 1, "verdict": "real", "prob_synthetic": 0.25,
        "synthetic": False, "pseudo_label": "disc", "confidence": 0.5, "raw_confidence": 0.75,
        "typicality": 0.5, "marked": None, "declared": None, "declared_by": None, "source": "crawl", "member": "a.jpg",
    }  # fmt: skip

    def others(metadata: bytes | None) -> dict[str, Any]:
        values = describe(parsed(metadata), row)
        assert values.pop("curate") == row
        written = json.loads(to_json({**values, "curate": row}, indent=None))
        assert written.pop("curate") == row
        assert isinstance(written, dict)
        return written

    assert others(None) == {}
    assert others(b'{"a": 1}') == {"a": 1}
    assert others(b"[1, 2]") == {"crawl": [1, 2]}
    assert others(b"not json \xff") == {"crawl": "not json \\xff"}
    assert others(b'{"curate": {"key": "old"}, "a": 1}') == {"crawl": {"curate": {"key": "old"}, "a": 1}}
    assert others(b"[" * 100_000) == {"crawl": "[" * 100_000}
    assert others(b"null") == {"crawl": None}
    assert others(b'{"a": NaN, "b": [-Infinity, 1e999, 0.5]}') == {"a": None, "b": [None, None, 0.5]}
    for depth in range(900, 1100, 7):  # somewhere it can be read and is too deep to be written
        assert list(others(b"[" * depth + b"]" * depth)) == ["crawl"]


def test_sidecars_of_every_kind_are_carried_and_our_class_replaces_none(tmp_path: Path) -> None:
    (sample,) = read_plainly(export_one(tmp_path / "x", cls=b"7", json=b"[3]", caption=b"hi"))
    assert sample["jpg"] == PICTURE
    assert sample["cls"].decode() in "01234"
    assert sample["crawl.cls"] == b"7"
    assert sample["txt"] == b"hi"
    assert json.loads(sample["json"])["crawl"] == [3]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_captions_are_read_in_the_encoding_that_they_begin_with(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding.endswith("be") else ""  # the others write one by themselves
    shard = export_one(tmp_path / "x", txt=f"{mark}un café, 图".encode(encoding))
    (sample,) = read_plainly(shard, decode=True)
    assert sample["txt"] == "un café, 图"


@pytest.mark.slow
@pytest.mark.parametrize("label", [b"dog", b"", b"7\xff"])
def test_text_that_is_not_utf8_and_labels_that_are_no_numbers_stay_in_the_pool_and_open_in_plain_webdataset(
    tmp_path: Path, label: bytes
) -> None:
    crawled = {"txt": b"un caf\xe9", "json": b'{"caption": "un caf\xe9"}', "cls": label}
    shard = export_one(tmp_path / "x", **crawled)
    (kept,) = read_plainly(tmp_path / "x" / "pool" / "00000.tar")
    assert {suffix: kept[suffix] for suffix in crawled} == crawled
    (sample,) = read_plainly(shard, decode=True)
    assert sample["txt"] == "un caf\\xe9"
    assert sample["json"]["crawl"] == '{"caption": "un caf\\xe9"}'
    assert sample["cls"] in range(5)
    assert sample["crawl.cls.txt"] == label.decode("utf-8", "backslashreplace")
    assert not verify.run(verify.VerifyConfig(pool=tmp_path / "x" / "pool", run=tmp_path / "none")).problems
