import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.benchmark import sources
from pipelines.errors import BadInput, CorruptShard
from pipelines.storage.shards import ShardWriter

CIFAR = Path(__file__).parents[3].parent / "shared" / "data" / "cifar10-test.parquet"
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NAMES = ["dog", "cat", "dog", "bird"]


def image(shade: int, format_: str = "PNG", size: int = 8) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (size, size), (shade, 0, 255 - shade)).save(stream, format_)
    return stream.getvalue()


IMAGES = [image(shade) for shade in range(4)]


def write_tar(path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    with ShardWriter(path) as tar:
        for key, members in samples.items():
            for suffix, content in members.items():
                tar.add(f"{key}.{suffix}", content)


def check(source: sources.Source, names: list[str] = NAMES) -> None:
    assert source.classes == tuple(sorted(set(names)))
    assert [source.classes[label] for label in source.labels] == names
    assert source.labels.dtype == np.int64 and len(source) == len(names)
    assert list(source.images) == [source.images[i] for i in range(len(source))] == IMAGES


def test_a_folder_per_class_in_any_depth(tmp_path: Path) -> None:
    for name, path in zip(NAMES, ("a/1.PNG", "2.png", "b.png", "images/0.png"), strict=True):
        (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
    for name, path, content in zip(NAMES, ("a/1.PNG", "2.png", "b.png", "images/0.png"), IMAGES, strict=True):
        (tmp_path / name / path).write_bytes(content)
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    source = sources.read(tmp_path)
    assert source.classes == ("bird", "cat", "dog") and source.labels.tolist() == [0, 1, 2, 2]
    assert list(source.images) == [IMAGES[3], IMAGES[1], IMAGES[0], IMAGES[2]]
    (tmp_path / "cat" / "2.png").unlink()
    with pytest.raises(BadInput, match=r"cat/2\.png cannot be read"):
        source.images[1]


@pytest.mark.parametrize("link", ["cat/1.png", "cat/more", "dog"])
def test_a_link_is_not_followed(tmp_path: Path, link: str) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    (outside / "secret.png").write_bytes(IMAGES[0])
    (root / "cat").mkdir(parents=True)
    (root / "cat" / "0.png").write_bytes(IMAGES[0])
    (root / link).symlink_to(outside / "secret.png" if link.endswith(".png") else outside)
    with pytest.raises(BadInput, match=rf"{link} is a link"):
        sources.read(root)


@pytest.mark.parametrize("column", ["jpg", "png", "image", "bytes"])
@pytest.mark.parametrize("label", sources.CLASS_COLUMNS)
def test_parquet_with_names(tmp_path: Path, column: str, label: str) -> None:
    pq.write_table(pa.table({"key": [1, 2, 3, 4], column: IMAGES, label: NAMES}), tmp_path / "a.parquet")
    source = sources.read(tmp_path / "a.parquet")
    check(source)
    assert source.name == "a"


def test_parquet_as_hugging_face_writes_it(tmp_path: Path) -> None:
    classes = ["dog", "cat", "bird"]  # in an order of their own
    features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pictures = [{"bytes": content, "path": None} for content in IMAGES]
    table = pa.table({"image": pictures, "label": [classes.index(name) for name in NAMES]})
    (tmp_path / "data").mkdir()
    for i, name in ((0, "train-00000-of-00002"), (2, "train-00001-of-00002")):
        part = table.slice(i, 2).replace_schema_metadata(metadata)
        pq.write_table(part, tmp_path / "data" / f"{name}.parquet")
    check(sources.read(tmp_path / "data"))
    pq.write_table(table.slice(0, 1), tmp_path / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(BadInput, match=r"holds the splits test and train\. Name the files of one of them"):
        sources.read(tmp_path / "data")
    check(sources.read(str(tmp_path / "data" / "train-*.parquet")))


def test_numbers_that_nothing_names_are_names_themselves(tmp_path: Path) -> None:
    pq.write_table(pa.table({"png": IMAGES, "label": [3, 1, 10, 1]}), tmp_path / "a.parquet")
    check(sources.read(tmp_path / "a.parquet"), ["3", "1", "10", "1"])


@pytest.mark.skipif(not CIFAR.exists(), reason="needs the CIFAR-10 test images of ../shared/data")
def test_cifar10_as_parquet() -> None:
    source = sources.read(CIFAR)
    assert len(source) == 10_000
    assert source.classes == CIFAR_CLASSES
    assert np.bincount(source.labels).tolist() == [1000] * 10
    table = pq.read_table(CIFAR)
    assert source.labels.tolist() == table["cls"].to_pylist()
    assert source.images[4321] == table["jpg"][4321].as_py()
    # Encoded by the same tables already: the common last step leaves it all but the same.
    before, after = (Image.open(io.BytesIO(one[7])) for one in (source.images, sources.matched(source).images))
    assert np.abs(np.asarray(before, dtype=int) - np.asarray(after, dtype=int)).mean() < 2


def test_webdataset_shards_and_the_names_beside_them(tmp_path: Path) -> None:
    numbers = {"bird": b"0", "cat": b"1\n", "dog": b"2"}
    samples = {
        f"{i:04d}": {"json": b"{}", "PNG" if i else "png": content, "cls": numbers[name]}
        for i, (name, content) in enumerate(zip(NAMES, IMAGES, strict=True))
    }
    write_tar(tmp_path / "00000.tar", dict(list(samples.items())[:3]))
    write_tar(tmp_path / "00001.tar", dict(list(samples.items())[3:]))
    check(sources.read(tmp_path), ["2", "1", "2", "0"])
    (tmp_path / "run.json").write_text(json.dumps({"stage": "export", "classes": ["bird", "cat", "dog"]}))
    (tmp_path / "kept.parquet").write_bytes(b"a table of what is in the shards")
    check(sources.read(tmp_path))
    source = sources.read(tmp_path / "00001.tar")
    assert source.classes == ("bird",) and list(source.images) == IMAGES[3:]
    os.truncate(tmp_path / "00001.tar", 1024)
    with pytest.raises(CorruptShard, match=r"00001\.tar: is shorter"):
        source.images[0]


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"png": IMAGES[0]}, r"sample 'a' has no \.cls"),
        ({"cls": b"0"}, "sample 'a' has no image"),
        ({"png": IMAGES[0], "cls": b"cat"}, r"a\.cls holds 'cat', which is not the number of a class"),
        ({"png": IMAGES[0], "cls": b"-1"}, r"a\.cls holds '-1'"),
        ({"png": IMAGES[0], "cls": b"\xff"}, r"a\.cls holds"),
    ],
)
def test_samples_that_cannot_serve_are_one_sentence(tmp_path: Path, members: dict[str, bytes], sentence: str) -> None:
    write_tar(tmp_path / "a.tar", {"a": members})
    with pytest.raises(BadInput, match=sentence):
        sources.read(tmp_path / "a.tar")


def test_a_tar_that_is_cut_is_one_sentence(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a": {"png": IMAGES[0], "cls": b"0"}})
    os.truncate(tmp_path / "a.tar", 520)
    with pytest.raises(BadInput, match=r"a\.tar: a\.png: the archive is cut"):
        sources.read(tmp_path)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"key": NAMES, "label": NAMES}, "has no column of image bytes, only key, label"),
        ({"png": IMAGES, "kind": NAMES}, "has no column for the class \\(class_name, cls"),
        ({"png": IMAGES, "label": [*NAMES[:3], None]}, "column 'label' is empty in row 3"),
        ({"png": [IMAGES[0], None], "label": NAMES[:2]}, "column 'png' is empty in row 1"),
        ({"image": [{"bytes": None, "path": "a.png"}] * 4, "label": NAMES}, "has no column of image bytes"),
        ({"png": pa.array([], pa.binary()), "label": pa.array([], pa.string())}, "holds no image"),
    ],
)
def test_bad_parquet_is_one_sentence(tmp_path: Path, columns: dict[str, object], sentence: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match=sentence):
        sources.read(tmp_path / "a.parquet")


def test_bad_sources_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("x")
    (tmp_path / "a.parquet").write_text("not parquet")
    (tmp_path / "both" / "cat").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "both" / "b.parquet").touch()
    for name, sentence in (
        ("nowhere", "nowhere is not a file"),
        ("no-*.parquet", "cannot be read as images"),
        ("note.txt", "cannot be read as images"),
        ("a.parquet", "cannot be read as parquet"),
        ("empty", "holds no images"),
        ("both", r"holds b\.parquet and the folder cat"),
    ):
        with pytest.raises(BadInput, match=sentence):
            sources.read(tmp_path / name)
    (tmp_path / "both" / "b.parquet").unlink()
    with pytest.raises(BadInput, match="cat holds no image"):
        sources.read(tmp_path / "both")


def test_matched_halves_have_one_size_and_one_codec(tmp_path: Path) -> None:
    for folder, format_, size in (("real", "PNG", 32), ("synthetic", "WEBP", 64)):
        (tmp_path / folder / "cat").mkdir(parents=True)
        (tmp_path / folder / "cat" / f"1.{format_.lower()}").write_bytes(image(100, format_, size))
    tables = []
    for folder in ("real", "synthetic"):
        source = sources.matched(sources.read(tmp_path / folder), size=24)
        assert (source.name, source.classes) == (folder, ("cat",))
        picture = Image.open(io.BytesIO(source.images[0]))
        assert (picture.format, picture.size) == ("JPEG", (24, 24))
        tables.append(picture.quantization)
    assert tables[0] == tables[1]
    (tmp_path / "real" / "cat" / "1.png").write_text("no image")
    with pytest.raises(BadInput, match="real: image 0 cannot be decoded"):
        sources.matched(sources.read(tmp_path / "real")).images[0]
