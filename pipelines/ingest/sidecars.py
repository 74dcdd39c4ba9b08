"""Decides which files belong to which image, by their names: one rule for tars and folders.

A sidecar belongs to the image with whose name its own begins, up to a dot: `a.b.txt` to `a.b.jpg` or `a.b.jpg.txt`,
else to `a.jpg`. The longest such name wins, so that no file is given to a second image where names have dots. Names
are compared in Unicode's composed form (NFC), because macOS decomposes them; suffixes in lower case.
"""

import os
from collections.abc import Iterator
from unicodedata import normalize

METADATA = {"json", "txt", "caption", "cls"}  # suffixes of what is known to describe an image
TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # of Hugging Face, each about a folder's images


def split(name: str) -> tuple[str, str]:
    """Divide a base name at its last dot: (stem in NFC, suffix in lower case)."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 - a Path for each file takes longer than its listing
    return composed(stem), suffix[1:].lower()


def composed(name: str) -> str:
    """A name in NFC."""
    return name if name.isascii() else normalize("NFC", name)


def owners(sidecar: str) -> Iterator[tuple[str, str]]:
    """Yield (name, suffix) for each name an image may have to own a sidecar, the longest first.

    The name is the image's, with or without its own suffix; the suffix, in lower case, is what the sidecar is to it.
    """
    name = composed(sidecar)
    dot = name.rfind(".")
    while dot > 0:
        yield name[:dot], name[dot + 1 :].lower()
        dot = name.rfind(".", 0, dot)


def beside(found: list[tuple[str, str, bytes]]) -> dict[str, bytes]:
    """The sidecars of one image by suffix, from (base name, suffix, content); no two take the same place.

    A kohya `.caption` is the image's `.txt` if it has no other.
    """
    taken: dict[str, bytes] = {}
    if len({suffix for _, suffix, _ in found}) < len(found):
        found = sorted(found, key=lambda sidecar: len(sidecar[0]))
    for name, suffix, content in found:
        if suffix in taken:  # photo.txt and photo.jpg.txt
            suffix = name.partition(".")[2].lower()
        if suffix in taken:
            suffix = f"{len(taken)}.{suffix}"
        taken[suffix] = content
    if "caption" in taken and "txt" not in taken:
        taken["txt"] = taken.pop("caption")
    return taken
