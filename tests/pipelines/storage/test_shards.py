"""Shards are read by everyone, and by position."""

import tarfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import webdataset

from pipelines.errors import CorruptShard
from pipelines.storage.shards import (
    ShardWriter,
    end_of_samples,
    member_span,
    read_samples,
    read_samples_at,
    read_spans,
    read_spans_across,
    sample_spans,
    sample_start,
)


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


def test_samples_are_found_from_the_offsets_of_their_images(tmp_path: Path) -> None:
    path = tmp_path / "00000.tar"
    offsets = np.array(write(path)[::2])
    end = end_of_samples(path)
    starts, stops = sample_spans(offsets, end)
    assert starts.tolist() == [sample_start(offset) for offset in offsets.tolist()] == [0, stops[0]]
    assert stops[-1] == end == path.stat().st_size - 1024
    spans = zip(starts.tolist(), (stops - starts).tolist(), strict=True)
    assert list(read_samples_at(path, spans)) == list(read_samples(path))
    assert [bounds.tolist() for bounds in sample_spans(offsets[:0], 0)] == [[], []]
    with pytest.raises(CorruptShard, match=r"00001\.tar: is missing"):
        end_of_samples(tmp_path / "00001.tar")


def test_members_follow_each_other_without_a_gap(tmp_path: Path) -> None:
    sizes = (0, 1, 511, 512, 513)
    spans = [member_span(0, sizes[0])]
    for size in sizes[1:]:
        spans.append(member_span(spans[-1].stop, size))
    assert all(before.stop == after.start for before, after in pairwise(spans))
    with ShardWriter(tmp_path / "00000.tar") as shard:
        for number, (size, span) in enumerate(zip(sizes, spans, strict=True)):
            assert shard.position == span.start
            assert shard.add(f"{number}.jpg", bytes(size)) == span.offset
            assert shard.position == span.stop


def test_spans_of_several_shards_come_in_the_order_asked_for(tmp_path: Path) -> None:
    paths = [tmp_path / "00000.tar", tmp_path / "00001.tar"]
    offsets = [write(path) for path in paths]
    asked = [(paths[0], offsets[0][2], 512), (paths[1], offsets[1][0], 100), (paths[0], offsets[0][1], 2)]
    assert list(read_spans_across(asked)) == [b"b" * 512, b"a" * 100, b"{}"]
    paths[1].unlink()
    with pytest.raises(CorruptShard, match=r"00001\.tar: is missing"):
        list(read_spans_across(asked))
