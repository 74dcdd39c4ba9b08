import shutil
from collections.abc import Callable
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


def _flatten(seed: Path) -> None:
    for path in sorted(seed.glob("*/*.png")):
        path.rename(seed / f"{path.parent.name}-{path.name}")
    for name in ("cat", "dog"):
        (seed / name).rmdir()


def _one_folder(seed: Path) -> None:
    _flatten(seed)
    (seed / "real" / "2024").mkdir(parents=True)
    for i, path in enumerate(sorted(seed.glob("*.png"))):
        path.rename((seed / "real" / path.name) if i % 2 else seed / "real" / "2024" / path.name)


def _a_folder_too_many(seed: Path) -> None:
    (seed / "train").mkdir()
    for name in ("cat", "dog"):
        (seed / name).rename(seed / "train" / name)


def _with_an_empty_folder(seed: Path) -> None:
    _flatten(seed)
    (seed / "later").mkdir()


@pytest.mark.parametrize(
    ("arrange", "says"),
    [
        (_flatten, "{seed} has no class folders"),
        (_with_an_empty_folder, "{seed} has no class folders"),
        (_one_folder, "{seed} has only the class 'real'"),
        (_a_folder_too_many, "{seed} has only the class 'train' (for the classes in it, give --labeled {seed}/train)"),
    ],
)
def test_a_flat_folder_or_one_class_has_no_classes(seed: Path, arrange: Callable[[Path], None], says: str) -> None:
    arrange(seed)
    read = labeled.read(seed, DECODER)
    assert (read.classes, read.labels.tolist(), len(read.digests)) == ((), [0] * 6, 6)
    assert read.without == says.format(seed=seed)
    assert read.views.images.shape == (6, 3, 32, 32)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("path\ncat/0.png\ndog/1.png\n", "has no label column"),
        ("path,label\ncat/0.png,real\ndog/1.png,real\n", "has only the class 'real'"),
    ],
)
def test_a_list_without_labels_has_no_classes(seed: Path, text: str, says: str) -> None:
    (seed / "list.csv").write_text(text)
    read = labeled.read(seed / "list.csv", DECODER)
    assert (read.classes, read.labels.tolist()) == ((), [0, 0])
    assert read.without == f"{seed}/list.csv {says}"


@pytest.mark.parametrize("flat", [True, False])
def test_what_file_managers_leave_is_no_part_of_the_set(seed: Path, flat: bool) -> None:
    if flat:
        _flatten(seed)
    before = labeled.files(seed)
    inside = seed if flat else seed / "cat"
    for name in (".DS_Store", "Thumbs.db", "._0.png", ".hidden.jpg", ".cache/1.png", "@eaDir/0.png/THUMB.jpg"):
        (inside / name).parent.mkdir(parents=True, exist_ok=True)
        (inside / name).write_bytes(b"not an image")
    for name in ("__MACOSX/cat/._0.png", ".thumbnails/2.png"):
        (seed / name).parent.mkdir(parents=True, exist_ok=True)
        (seed / name).write_bytes(b"not an image")
    assert labeled.files(seed) == before and len(before) == 6


def test_a_validation_set_needs_classes_on_both_sides(seed: Path) -> None:
    with pytest.raises(BadInput, match=r"--validation .*seed: the labeled set has no classes, .* Leave out"):
        labeled.read(seed, DECODER, classes=())
    _flatten(seed)
    with pytest.raises(BadInput, match=r"seed has no classes\. Give it the class folders .*: cat, dog\."):
        labeled.read(seed, DECODER, classes=("cat", "dog"))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda seed: shutil.rmtree(seed), "does not exist"),
        (lambda seed: [shutil.rmtree(seed / name) for name in ("cat", "dog")], r"seed holds no image \(\.avif, "),
        (lambda seed: [path.unlink() for path in (seed / "cat").iterdir()], "cat holds no image"),
        (lambda seed: (seed / "cat" / "0.png").write_bytes(b"<html>"), r"cat/0.png cannot be decoded"),
        (
            lambda seed: (seed / "cat" / "0.png").rename(seed / "a.png"),
            r"seed/a.png is not in a class folder, but .*/cat/1.png is\.",
        ),
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
