import io
import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.errors import BadInput
from pipelines.images.views import Decoder
from pipelines.pool import labeled
from pipelines.pool.labeled_files import in_natural_order

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
        (lambda seed: (seed / "cat" / "0.png").write_bytes(b"<html>"), r"cat/0.png is not an image \(HTML\)\. Fix or"),
        (lambda seed: (seed / "cat" / "0.png").write_bytes(b""), r"cat/0.png is not an image \(0 bytes\)\. Fix or"),
        (
            lambda seed: (seed / "cat" / "0.png").write_bytes((seed / "cat" / "0.png").read_bytes()[:60]),
            r"^image [^ ]*cat/0.png cannot be decoded \([^<>]*\)\. Fix or remove it\.$",
        ),
        (
            lambda seed: (seed / "cat" / "photo").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
            "cat/photo is heic, which curate does not decode. Save it as JPEG or PNG",
        ),
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
        ("list.csv", "path,label\na.png,cat\nb.png,dog\na.png,dog\n", "lists .*/a.png both as 'cat' and as 'dog'"),
        ("list.csv", b"path,label\na.png,cat\nb.png,caf\xe9\n", "column 'label' is not UTF-8 text in row 2"),
        ("list.csv", 'path,label\na.png,cat\nb.png,"a\nb"\n', "column 'label' is more than a line in row 2"),
        ("list.txt", "a.png cat", "is not a labeled set"),
    ],
)
def test_bad_lists_are_one_sentence(tmp_path: Path, name: str, text: str | bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput, match=sentence):
        labeled.read(tmp_path / name, DECODER)


def png(shade: int, codec: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32, 32), (shade, shade, shade)).save(out, codec)
    return out.getvalue()


def fill(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True)
    for shade, name in enumerate(names):
        (folder / name).write_bytes(png(shade))


def test_classes_are_texts_in_natural_order(tmp_path: Path) -> None:
    for name in ("10", "2", "007", "1", "img12", "img9", "true"):
        fill(tmp_path / "seed" / name, "a.png")
    assert labeled.read(tmp_path / "seed", DECODER).classes == ("1", "2", "007", "10", "img9", "img12", "true")
    ten = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    assert tuple(in_natural_order(set(ten))) == ten  # the order of CIFAR-10's labels


def test_labels_of_a_csv_are_as_they_are_written(seed: Path) -> None:
    (seed / "list.csv").write_text(
        "path,label\ncat/0.png,007\ncat/1.png,010\ncat/2.png,1e3\ndog/0.png,true\ndog/1.png,NA"
    )
    read = labeled.read(seed / "list.csv", DECODER)
    assert read.classes == ("1e3", "007", "010", "NA", "true")
    assert [read.classes[label] for label in read.labels] == ["007", "010", "1e3", "true", "NA"]


def test_names_of_macos_and_of_linux_are_the_same_class(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        fill(tmp_path / form / unicodedata.normalize(form, "café"), "1.png")
        fill(tmp_path / form / "thé", "1.png")
    read = labeled.read(tmp_path / "NFD", DECODER)
    assert read.classes == ("café", "thé")
    assert labeled.read(tmp_path / "NFC", DECODER, read.classes).labels.tolist() == [0, 1]
    (tmp_path / "list.csv").write_text(f"path,label\nNFC/thé/1.png,{unicodedata.normalize('NFD', 'café')}")
    assert labeled.read(tmp_path / "list.csv", DECODER, read.classes).labels.tolist() == [0]


def test_an_image_is_known_by_its_bytes(seed: Path) -> None:
    (seed / "cat" / "a.jfif").write_bytes(png(1, "JPEG"))
    (seed / "cat" / "b.jp2").write_bytes(png(2, "JPEG2000"))
    (seed / "cat" / "without suffix").write_bytes(png(3))
    (seed / "cat" / "notes.md").write_bytes(b"# none")
    (seed / "cat" / "layers.psd").write_bytes(b"8BPS" + bytes(40))
    assert [path.name for path, label in labeled.files(seed) if label == "cat"][3:] == [
        "a.jfif",
        "b.jp2",
        "without suffix",
    ]


def test_all_problems_are_said_at_once_the_first_ten_in_full(tmp_path: Path) -> None:
    fill(tmp_path / "cat", *(f"{i:02d}.png" for i in range(20)))
    fill(tmp_path / "dog", "0.png")
    (tmp_path / "empty").mkdir()
    for i in range(12):
        (tmp_path / "cat" / f"{i:02d}.png").write_bytes(png(i)[: 60 if i % 2 else 0])
    with pytest.raises(BadInput) as error:
        labeled.read(tmp_path, DECODER)
    first, *lines = str(error.value).splitlines()
    assert first == f"{tmp_path}: 13 problems."
    assert len(lines) == 11 and lines[-1] == "  And 3 more."
    assert lines[0] == f"  {tmp_path}/cat/00.png is not an image (0 bytes). Fix or remove it."
    assert f"  {tmp_path}/empty holds no image. Put images of that class into it, or remove the folder." in lines
    assert any("01.png cannot be decoded" in line for line in lines)
    (tmp_path / "empty").rmdir()
    for i in range(0, 12, 2):
        (tmp_path / "cat" / f"{i:02d}.png").unlink()
    with pytest.raises(BadInput, match="6 problems") as error:
        labeled.read(tmp_path, DECODER)
    assert [f"{i:02d}.png cannot be decoded" in str(error.value) for i in range(1, 12, 2)] == [True] * 6


def test_the_parts_of_a_data_set_are_not_its_classes(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in ("a", "b"):
            fill(tmp_path / "set" / part / name, "1.png")
            fill(tmp_path / "vehicles" / ("train" if part == "train" else "truck") / name, "1.png")
    with pytest.raises(BadInput, match=r"set holds train, val: the parts .* such as --labeled .*/set/train\.$"):
        labeled.read(tmp_path / "set", DECODER)
    assert labeled.read(tmp_path / "vehicles", DECODER).classes == ("train", "truck")


@pytest.mark.parametrize("kind", ["struct", "bytes", "large bytes"])
@pytest.mark.parametrize("has_names", [True, False])
def test_a_parquet_of_images_is_read_as_hugging_face_writes_it(tmp_path: Path, kind: str, has_names: bool) -> None:
    contents, numbers = [png(shade) for shade in (10, 20, 30)], [1, 0, 1]
    images = pa.array(
        [{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(contents)]
        if kind == "struct"
        else contents,
        pa.large_binary() if kind == "large bytes" else None,
    )
    table = pa.table({"image": images, "label": numbers})
    if has_names:
        features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "hf.parquet")
    read = labeled.read(tmp_path / "hf.parquet", DECODER)
    assert read.classes == (("cat", "dog") if has_names else ("0", "1")) and read.labels.tolist() == numbers
    assert read.views.images[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert [path.read_bytes() for path, _ in labeled.files(tmp_path / "hf.parquet")] == contents


def test_what_is_wrong_with_a_parquet_of_images_never_shows_their_bytes(tmp_path: Path) -> None:
    images = [
        {"bytes": png(1)[:50], "path": "a.png"},
        {"bytes": None, "path": None},
        {"bytes": b"<html>", "path": None},
    ]
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"image": images, "label": [0, 1, -1]}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "hf.parquet")
    with pytest.raises(BadInput) as error:
        labeled.read(tmp_path / "hf.parquet", DECODER)
    text = str(error.value)
    assert "hf.parquet: 4 problems." in text and len(text) < 1000 and "\\x" not in text
    for problem in (
        "row 1 (a.png) cannot be decoded",
        "row 2, holds no image",
        "'label' is empty in row 3",
        "row 3 cannot be",
    ):
        assert problem in text


def test_a_folder_of_parquet_files_names_one_of_them(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"key": ["1"]}), tmp_path / "data" / "dropped.parquet")
    pq.write_table(pa.table({"image": [b"1"]}), tmp_path / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(
        BadInput, match=r"holds no image, but parquet files\. Give one .*/train-00000-of-00001.parquet\."
    ):
        labeled.read(tmp_path, DECODER)


def test_a_folder_whose_name_is_not_utf8_is_one_sentence(tmp_path: Path) -> None:
    fill(tmp_path / "cat", "1.png")
    fill(tmp_path / "L\udcf6we", "1.png")
    with pytest.raises(BadInput, match="its name is not a line of UTF-8"):
        labeled.read(tmp_path, DECODER)
