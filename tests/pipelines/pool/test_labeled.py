import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.errors import BadInput
from pipelines.images.views import Decoder
from pipelines.pool import labeled

DECODER = Decoder(32, 32)


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    for label, shade in (("cat", 10), ("dog", 200)):
        (tmp_path / "seed" / label).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (32, 32), (shade, i, 0)).save(tmp_path / "seed" / label / f"{i}.png")
    return tmp_path / "seed"


def test_folders_are_classes_in_sorted_order(seed: Path) -> None:
    (seed / ".hidden").mkdir()
    (seed / "cat" / "notes.txt").write_text("not an image")
    read = labeled.read(seed, DECODER)
    assert read.classes == ("cat", "dog")
    assert read.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert read.views.images.shape == (6, 3, 32, 32)
    assert len(read.digests) == 6


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_list_of_path_and_label_gives_the_same(seed: Path, suffix: str) -> None:
    names = [f"{label}/{i}.png" for label in ("cat", "dog") for i in range(3)]
    labels = [name.split("/")[0] for name in names]
    if suffix == "csv":
        lines = ["path,label", *(f"{name},{label}" for name, label in zip(names, labels, strict=True))]
        (seed / "list.csv").write_text("\n".join(lines))
    else:
        pq.write_table(pa.table({"path": names, "label": labels}), seed / "list.parquet")
    listed, folders = labeled.read(seed / f"list.{suffix}", DECODER), labeled.read(seed, DECODER)
    assert listed.labels.tolist() == folders.labels.tolist()
    assert listed.views.images.equal(folders.views.images)


def test_validation_follows_the_classes_of_the_labeled_set(seed: Path) -> None:
    shutil.rmtree(seed / "cat")
    read = labeled.read(seed, DECODER, classes=("cat", "dog"))
    assert read.labels.tolist() == [1, 1, 1]
    with pytest.raises(BadInput, match=r"has the class 'dog', which is not in the labeled set \(bird, cat\)"):
        labeled.read(seed, DECODER, classes=("bird", "cat"))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda seed: shutil.rmtree(seed), "does not exist"),
        (lambda seed: [shutil.rmtree(seed / name) for name in ("cat", "dog")], "has no class folders"),
        (lambda seed: shutil.rmtree(seed / "cat"), "has only the class 'dog'"),
        (lambda seed: [path.unlink() for path in (seed / "cat").iterdir()], "cat holds no image"),
        (lambda seed: (seed / "cat" / "0.png").write_bytes(b"<html>"), r"cat/0.png cannot be decoded"),
        (lambda seed: (seed / "cat" / "0.png").rename(seed / "a.png"), r"seed/a.png is not in a class folder"),
    ],
)
def test_bad_sets_are_one_sentence(seed: Path, spoil: object, sentence: str) -> None:
    assert callable(spoil)
    spoil(seed)
    with pytest.raises(BadInput, match=sentence):
        labeled.read(seed, DECODER)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("list.csv", "file_name,label\na.png,cat", "has no column 'path'"),
        ("list.csv", "path,label\nnowhere.png,cat\nelsewhere.png,dog", "nowhere.png cannot be read"),
        ("list.csv", "path,label\n", "has no rows"),
        ("list.csv", "path,label\na.png,cat\nb.png,\n", "column 'label' is empty in row 2"),
        ("list.csv", "path,label\na.png,cat\nb.png,dog\na.png,dog\n", "lists a.png both as 'cat' and as 'dog'"),
        ("list.csv", b"path,label\na.png,cat\nb.png,caf\xe9\n", "column 'label' is not UTF-8 text"),
        ("list.txt", "a.png cat", "is not a labeled set"),
    ],
)
def test_bad_lists_are_one_sentence(tmp_path: Path, name: str, text: str | bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput, match=sentence):
        labeled.read(tmp_path / name, DECODER)
