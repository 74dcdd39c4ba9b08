"""A shard that plain webdataset reads otherwise than kept.parquet says is refused, and the earlier export stays."""

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines import export
from pipelines.errors import CorruptShard
from pipelines.export import readback
from pipelines.storage.shards import ShardWriter, read_samples
from tests.pipelines.export.exports import files, settings

Members = list[tuple[str, bytes]]


@pytest.fixture(scope="module")
def sound(pool: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("readback") / "out"
    export.run(settings(out, pool, run, keep="all", shard_size=20, where="key < '000000050'"))
    return out


def checked(sound: Path, tar: Path) -> None:
    rows = pq.read_table(sound / "kept.parquet")
    readback.check(tar, rows.filter([shard == "00000" for shard in rows["shard"].to_pylist()]))


def test_a_sound_shard_passes(sound: Path) -> None:
    checked(sound, sound / "00000.tar")


def twice(members: Members) -> Members:
    return [members[0], *members]


def in_capitals_beside_itself(members: Members) -> Members:
    """As a crawl might name it; webdataset does not tell them apart."""
    key = members[0][0].partition(".")[0]
    return [members[0], (f"{key}.TXT", b"other"), *members[1:]]


def without_the_last_sample(members: Members) -> Members:
    last = members[-1][0].partition(".")[0]
    return [member for member in members if not member[0].startswith(last)]


def with_another_sample(members: Members) -> Members:
    return [*members, ("000099999.jpg", b"more")]


def with_another_image(members: Members) -> Members:
    return [(members[0][0], members[0][1] + b"more"), *members[1:]]


def with_another_class(members: Members) -> Members:
    return [(name, b"77" if name.endswith(".cls") else content) for name, content in members]


def without_metadata(members: Members) -> Members:
    return [(name, b"{}" if name.endswith(".json") else content) for name, content in members]


def with_a_caption(members: Members) -> Members:
    return [*members, (f"{members[-1][0].partition('.')[0]}.caption", b"only here")]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (twice, "duplicate file name"),
        (in_capitals_beside_itself, "duplicate file name"),
        (without_the_last_sample, r"finds no sample where kept\.parquet lists \d{9}"),
        (with_another_sample, r"finds 000099999 where kept\.parquet lists none"),
        (with_another_image, r"does not find the image of \d{9}"),
        (with_another_class, "finds the class b'77'"),
        (without_metadata, "finds no metadata of"),
        (with_a_caption, r"finds other members of \d{9} than of \d{9}"),
    ],
)
def test_each_difference_is_named(
    change: Callable[[Members], Members], difference: str, sound: Path, tmp_path: Path
) -> None:
    samples = read_samples(sound / "00000.tar")
    members = [(f"{key}.{suffix}", data) for key, sample in samples for suffix, data in sample.items()]
    with ShardWriter(tmp_path / "00000.tar") as tar:
        for name, data in change(members):
            tar.add(name, data)
    with pytest.raises(
        CorruptShard, match=rf"00000\.tar: webdataset .*{difference}.* The export is not complete\. Run"
    ):
        checked(sound, tmp_path / "00000.tar")


def test_a_cut_shard_is_named(sound: Path, tmp_path: Path) -> None:
    content = (sound / "00000.tar").read_bytes()
    (tmp_path / "00000.tar").write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptShard, match=r"00000\.tar: webdataset"):
        checked(sound, tmp_path / "00000.tar")


def test_an_export_that_fails_the_check_leaves_the_earlier_one(
    pool: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    export.run(settings(out, pool, run))
    before = files(out)
    add = ShardWriter.add

    def without_classes(tar: ShardWriter, name: str, content: bytes) -> int:
        return add(tar, name, b"" if name.endswith(".cls") else content)

    monkeypatch.setattr(ShardWriter, "add", without_classes)
    with pytest.raises(CorruptShard, match="finds the class b''"):
        export.run(settings(out, pool, run))
    assert files(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
