"""Archives in the layout of the real ones, served by a real HTTP server on the loopback interface."""

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.benchmark import downloads, sources
from pipelines.benchmark.downloads import DATASETS, Dataset, fetch_from
from pipelines.errors import BadInput

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)


class Quiet(SimpleHTTPRequestHandler):
    requests: list[str] = []  # noqa: RUF012 - one server a test, and each begins with an empty list

    def log_message(self, *arguments: object) -> None:
        self.requests.append(self.command)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the URL under which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    Quiet.requests.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def cifar_archive(path: Path, folder: str, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def cifar10(path: Path) -> list[int]:
    """Write an archive of CIFAR-10's binary version with two images a batch; the labels of all twelve."""
    labels = [9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 9]
    files = {"batches.meta.txt": "".join(f"{name}\n" for name in CLASSES).encode() + b"\n", "readme.html": b"<html>"}
    batches = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    for i, batch in enumerate(batches):
        files[batch] = b"".join(bytes([labels[j]]) + PIXELS[j].tobytes() for j in (2 * i, 2 * i + 1))
    cifar_archive(path, "cifar-10-batches-bin", files)
    return labels


def local(name: str, archive: Path, url: str) -> Dataset:
    """A data set as it is declared, but for where it is and what its archive's digest is."""
    md5 = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    return replace(DATASETS[name], url=f"{url}/{archive.name}", md5=md5)


def decoded(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content))).transpose(2, 0, 1)


def test_cifar10_comes_without_loss(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = served
    labels = cifar10(folder / "cifar-10-binary.tar.gz")
    dataset = local("cifar10", folder / "cifar-10-binary.tar.gz", url)
    root = tmp_path / "root"
    assert fetch_from(dataset, "cifar10", root) == root / "cifar10"
    train, test = (sources.read(root / "cifar10" / f"{split}.parquet") for split in ("train", "test"))
    assert [train.classes[label] for label in train.labels] == [CLASSES[label] for label in labels[:10]]
    assert [test.classes[label] for label in test.labels] == ["airplane", "truck"]
    for content, pixels in zip([*train.images, *test.images], PIXELS, strict=True):
        assert content.startswith(b"\x89PNG") and (decoded(content) == pixels).all()
    assert (root / "cifar10" / "classes.txt").read_text().split() == ["airplane", "truck"]
    with pytest.raises(BadInput, match="holds the splits test and train"):
        sources.read(root / "cifar10")
    assert not [path for path in root.rglob("*") if path.name.startswith(".")]


def test_what_is_there_is_not_fetched_again(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = served
    cifar10(folder / "cifar-10-binary.tar.gz")
    dataset = local("cifar10", folder / "cifar-10-binary.tar.gz", url)
    archive = tmp_path / dataset.url.rpartition("/")[2]
    archive.write_bytes((folder / archive.name).read_bytes()[:1000])  # what an interrupted download leaves
    made = fetch_from(dataset, "cifar10", tmp_path)
    assert Quiet.requests
    before = (made / "train.parquet").read_bytes()
    Quiet.requests.clear()
    (made / "test.parquet").unlink()  # killed between the two
    fetch_from(dataset, "cifar10", tmp_path)
    assert (made / "test.parquet").exists() and (made / "train.parquet").read_bytes() == before
    jpeg = fetch_from(dataset, "cifar10", tmp_path, "jpg")
    assert not Quiet.requests
    archive.unlink()
    assert fetch_from(dataset, "cifar10", tmp_path) == made and not Quiet.requests

    source = sources.read(jpeg / "train.parquet")
    assert jpeg == tmp_path / "cifar10-jpg"
    with Image.open(io.BytesIO(source.images[0])) as image:
        assert image.format == "JPEG"
        assert list(image.quantization[0][:8]) == [8, 6, 5, 8, 12, 20, 26, 31]  # quality 75


def test_cifar100_takes_the_fine_label(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = served
    names = [f"fine_{i}" for i in range(100)]
    records = [bytes([19, fine]) + PIXELS[i].tobytes() for i, fine in enumerate((99, 3, 42))]
    files = {
        "coarse_label_names.txt": b"coarse\n" * 20,
        "fine_label_names.txt": "\n".join(names).encode(),
        "train.bin": b"".join(records[:2]),
        "test.bin": records[2],
    }
    cifar_archive(folder / "cifar-100-binary.tar.gz", "cifar-100-binary", files)
    made = fetch_from(local("cifar100", folder / "cifar-100-binary.tar.gz", url), "cifar100", tmp_path)
    train, test = (sources.read(made / f"{split}.parquet") for split in ("train", "test"))
    assert [train.classes[label] for label in train.labels] == ["fine_99", "fine_3"]
    assert test.classes == ("fine_42",) and (decoded(test.images[0]) == PIXELS[2]).all()


def test_tinyimagenet_stays_as_it_is_published(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = served
    contents = []
    for pixels in PIXELS[:5]:
        stream = io.BytesIO()
        Image.fromarray(pixels.transpose(1, 2, 0)).save(stream, "JPEG", quality=90)
        contents.append(stream.getvalue())
    top = "tiny-imagenet-200"
    with zipfile.ZipFile(folder / f"{top}.zip", "w") as archive:
        archive.writestr(f"{top}/wnids.txt", "n02\nn01\nn03\n")
        archive.writestr(
            f"{top}/words.txt", "n00\tother\nn01\tgoldfish, Carassius auratus\nn02\tcrane\nn03\tcrane, bird\n"
        )
        for i, (wnid, content) in enumerate(zip(("n01", "n01", "n02"), contents, strict=False)):
            archive.writestr(f"{top}/train/{wnid}/images/{wnid}_{i}.JPEG", content)
            archive.writestr(f"{top}/train/{wnid}/{wnid}_{i}_boxes.txt", "")
        archive.writestr(f"{top}/val/val_annotations.txt", "val_1.JPEG\tn03\t0\t0\t9\t9\nval_0.JPEG\tn01\t0\t0\t9\t9\n")
        for i in (0, 1):
            archive.writestr(f"{top}/val/images/val_{i}.JPEG", contents[3 + i])
        archive.writestr(f"{top}/test/images/test_0.JPEG", b"has no label")
    dataset = local("tinyimagenet", folder / f"{top}.zip", url)
    made = fetch_from(dataset, "tinyimagenet", tmp_path)
    train, test = (sources.read(made / f"{split}.parquet") for split in ("train", "test"))
    assert [train.classes[label] for label in train.labels] == ["goldfish", "goldfish", "crane (n02)"]
    assert [test.classes[label] for label in test.labels] == ["goldfish", "crane (n03)"]
    assert [*train.images, *test.images] == contents
    with pytest.raises(BadInput, match="is published as jpg and not available as png"):
        fetch_from(dataset, "tinyimagenet", tmp_path, "png")


def test_what_goes_wrong_is_one_sentence_and_leaves_no_data_set(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = served
    cifar10(folder / "cifar-10-binary.tar.gz")
    whole = local("cifar10", folder / "cifar-10-binary.tar.gz", url)
    root = tmp_path / "root"
    (folder / "cifar-10-binary.tar.gz").write_bytes(b"<html>moved</html>")
    with pytest.raises(BadInput, match="did not arrive whole, or has changed"):
        fetch_from(whole, "cifar10", root)
    with pytest.raises(BadInput, match=r"nothing\.tar\.gz cannot be downloaded \(File not found\)"):
        fetch_from(replace(whole, url=f"{url}/nothing.tar.gz"), "cifar10", root)
    with pytest.raises(BadInput, match=r"cannot be downloaded .*\. Run the same command again with a network, or copy"):
        fetch_from(replace(whole, url="http://127.0.0.1:9/nothing.tar.gz"), "cifar10", root)
    with pytest.raises(BadInput, match=r"mnist is not a data set that can be fetched\. Name one of cifar10, cifar100"):
        downloads.fetch("mnist", root)
    assert not (root / "cifar10").exists()
