"""The labeled set of real images: a folder of images, a CSV or parquet of their paths, or a parquet of images.

Folders in the folder, or a column of labels, give the images classes (`pipelines.pool.labeled_files`), numbered in
natural order: 2 before 10. With one class or none, the set has no classes: its images are real, and no more is known.

The set is small and the user's own. A file in it that is not an image is therefore an error, not a reject as in a
crawl. The error names all such files, so that they can be fixed in one go.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import torch
from torch import Tensor

from pipelines.errors import BadInput, CorruptShard, what_is_wrong, why
from pipelines.images.check import foreign_images
from pipelines.images.views import ViewMaker, Views, picture
from pipelines.pool.labeled_files import File, find, in_natural_order, refusal


@dataclass(frozen=True)
class Labeled:
    """Decoded images with labels (N,) int64, indices into `classes`.

    Without classes `classes` is empty, all labels are 0, and `without` says why: "photos has no class folders".
    """

    views: Views
    labels: Tensor
    classes: tuple[str, ...]
    sha256: tuple[str, ...]  # of the files, in the order of the labels
    without: str | None = None

    @property
    def digests(self) -> frozenset[str]:
        """The sha256 of all files."""
        return frozenset(self.sha256)


def read(source: Path, decoder: ViewMaker, classes: Sequence[str] | None = None) -> Labeled:
    """Read and decode a labeled set. A validation set is read with the `classes` of the labeled set, in their order.

    Raises BadInput, which names every file, folder or row that cannot be used.
    """
    found = find(source)
    names = in_natural_order({label for _, label in found.files if label is not None})
    if classes is not None and not found.problems:
        _check_classes(source, names, classes)
    problems, files, labels, data = list(found.problems), list[File](), list[str | None](), list[bytes]()
    for file, label in found.files:
        try:
            data.append(file.read_bytes())
        except OSError as error:
            problems.append(f"{file} cannot be read ({why(error)}). Fix or remove it")
            continue
        files.append(file)
        labels.append(label)
    if problems:
        raise refusal(source, problems + _undecodable(files, data))
    try:
        with ThreadPoolExecutor() as threads:
            views = decoder.batch([str(file) for file in files], data, threads)
    except CorruptShard as error:  # it names only the first
        raise refusal(source, _undecodable(files, data) or [what_is_wrong(error)]) from None
    without = None
    if classes is None:
        classes = names if len(names) > 1 else ()
        without = None if classes else f"{source} has {_what_it_has(source, found.files, names)}"
    number: dict[str | None, int] = {name: i for i, name in enumerate(classes)}  # empty without classes
    digests = tuple(hashlib.sha256(content).hexdigest() for content in data)
    return Labeled(views, torch.tensor([number.get(label, 0) for label in labels]), tuple(classes), digests, without)


@foreign_images()
def _undecodable(files: Sequence[File], data: Sequence[bytes]) -> list[str]:
    """What is wrong with each of the files that do not decode."""
    problems = []
    for file, content in zip(files, data, strict=True):
        try:
            picture(str(file), content)
        except CorruptShard as error:
            problems.append(f"{what_is_wrong(error)}. Fix or remove it")
    return problems


def _what_it_has(source: Path, named: Sequence[tuple[File, str | None]], found: Sequence[str]) -> str:
    """What a set without classes has instead; a folder too many above the classes is pointed out."""
    if not found:
        return "no class folders" if source.is_dir() else "no label column"
    only = f"only the class {found[0]!r}"
    if source.is_dir():
        paths = [path for path, _ in named if isinstance(path, Path)]
        inside = {path.relative_to(source).parts[1] for path in paths if path.parent.parent != source}
        if len(inside) > 1:
            only += f" (for the classes in it, give --labeled {quote(str(source / found[0]))})"
    return only


def _check_classes(source: Path, found: Sequence[str], classes: Sequence[str]) -> None:
    """Raise BadInput unless the classes of a validation set are those of the labeled set, or some of them."""
    if not classes:
        raise BadInput(
            f"--validation {source}: the labeled set has no classes, so there are no labels to compare. Leave out "
            "--validation, or give the labeled set one folder per class."
        )
    if not found:
        raise BadInput(f"{source} has no classes. Give it the class folders of the labeled set: {', '.join(classes)}.")
    if unknown := set(found) - set(classes):
        raise BadInput(
            f"{source} has the class {min(unknown)!r}, which is not in the labeled set ({', '.join(classes)}). Add it "
            "there, or remove it here."
        )


def files(source: Path) -> list[tuple[File, str | None]]:
    """List the files of a labeled set, each with its class, None where the set names none.

    Raises BadInput, which names every file that cannot be used.
    """
    found = find(source)
    if found.problems:
        raise refusal(source, found.problems)
    return list(found.files)
