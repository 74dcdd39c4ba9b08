"""One sample of an export, from one of the pool: its caption, the fields of its JSON, and the members beside its image.

`webdataset` decodes .txt as UTF-8 and .cls as a number, and fails if they are not. The pool keeps them as they were
crawled. Here they are written so that they can be decoded.
"""

import codecs
import json
import re
from collections.abc import Mapping
from typing import Any

from pipelines.export.shape import CRAWL, OURS, Shape
from pipelines.run.scores import SCHEMA
from pipelines.storage.json_text import to_json

IMAGE = "jpg"  # suffix of every image, whatever its format: readers want one, and go by the content

_DESCRIBED = (
    "key", "format", "width", "height", "prob_synthetic", "synthetic", "verdict", "pseudo_label", "confidence",
    "raw_confidence", "typicality", "marked", "declared", "declared_by", "source", "member",
)  # fmt: skip
_CAPTIONS = ("caption", "text", "txt", "alt_text", "alt")  # fields that may hold the caption, in any case
# UTF-32 comes first: its BOM begins with that of UTF-16.
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
_UID = re.compile(r"[0-9a-f]{32}")
_INT32 = 1 << 31
_COLUMNS = frozenset(SCHEMA.names)  # Arrow makes the list of names anew whenever it is asked for
_DEEP = 200  # brackets in a text, from which it is tried whether it can be written again


def parsed(metadata: bytes | None) -> Any:
    """The crawl's JSON of an image; an empty object without any.

    What is no JSON, or is nested too deeply to be written again, is returned as text.
    """
    if metadata is None:
        return {}
    try:
        values = json.loads(metadata)
        if metadata.count(b"[") + metadata.count(b"{") > _DEEP:
            to_json({OURS: {OURS: values}}, indent=None)
        return values
    except (ValueError, RecursionError):
        return _text(metadata)


def uid_of(crawled: Any, sha256: str) -> str:
    """DataComp's uid of an image, 32 hexadecimal digits: from its JSON, otherwise the start of its SHA-256."""
    uid = crawled.get("uid") if isinstance(crawled, dict) else None
    return uid.lower() if isinstance(uid, str) and _UID.fullmatch(uid.lower()) else sha256[:32]


def describe(crawled: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """The crawl's JSON of an image, with our columns added under "curate", and scores from outside under "outside".

    If the crawl's JSON is not an object, or has a "curate" already (an export was ingested), it moves to "crawl".
    """
    values = crawled if isinstance(crawled, dict) and OURS not in crawled else {CRAWL: crawled}
    ours: dict[str, Any] = {
        name: round(row[name], 6) if isinstance(row[name], float) else row[name] for name in _DESCRIBED
    }
    if outside := {name: value for name, value in row.items() if name not in _COLUMNS}:
        ours["outside"] = {name: None if value is None else float(f"{value:.7g}") for name, value in outside.items()}
    return {**values, OURS: ours}


def caption_of(row: Mapping[str, Any], text: bytes | None, crawled: Any) -> str:
    """The caption of an image; empty without.

    That is its .txt, else that of the manifest if it has such a column, else a field of its JSON (the first text of a
    list).
    """
    if text is not None and (caption := _text(text)).strip():
        return caption
    if (known := row.get("caption")) and isinstance(known, str):
        return known
    if not isinstance(crawled, dict):
        return ""
    named = {name.lower(): value for name, value in reversed(crawled.items())}
    for name in _CAPTIONS:
        found = named.get(name)
        for value in found if isinstance(found, list) else [found]:
            if isinstance(value, str) and value.strip():
                return value
    return ""


def others_of(sample: Mapping[str, bytes], format_: str, with_classes: bool) -> dict[str, bytes]:
    """Members of a sample by suffix, without its image, JSON and caption.

    The crawl's class keeps its name where it is a number and we have none; else it gets another.
    """
    others = {suffix: content for suffix, content in sample.items() if suffix not in (format_, IMAGE, "json", "txt")}
    if (label := others.pop("cls", None)) is not None:
        number = _number(label)
        if number is None:
            others["crawl.cls.txt"] = label
        else:
            others["crawl.cls" if with_classes else "cls"] = str(number).encode()
    for suffix in others:
        if suffix.rpartition(".")[2] == "txt":
            others[suffix] = _text(others[suffix]).encode()
    return others


def members(
    row: Mapping[str, Any], sample: Mapping[str, bytes], crawled: Any, class_index: int | None, shape: Shape
) -> dict[str, bytes]:
    """Members of an exported sample by suffix: the image, its class, caption and metadata, the crawl's other files.

    `crawled` is the crawl's JSON as `parsed` gives it.
    """
    own_class = {} if class_index is None else {"cls": str(class_index).encode()}
    caption = {"txt": encoded(caption_of(row, sample.get("txt"), crawled))} if shape.with_captions else {}
    beside = others_of(sample, row["format"], class_index is not None)
    others = {name: content for name, content in beside.items() if name in shape.common}
    text = to_json(shape.conform(describe(crawled, row)), indent=None)
    return {IMAGE: sample[row["format"]], **own_class, **caption, "json": encoded(text), **others}


def encoded(text: str) -> bytes:
    """Text as UTF-8; half a surrogate pair, which JSON allows, is escaped."""
    return text.encode("utf-8", "backslashreplace")


def _text(content: bytes) -> str:
    """Decode text by its BOM, otherwise as UTF-8. Bytes that cannot be decoded are escaped."""
    for bom, encoding in _BOMS:
        if content.startswith(bom):
            return content.removeprefix(bom).decode(encoding, "backslashreplace")
    return content.decode("utf-8", "backslashreplace")


def _number(label: bytes) -> int | None:
    try:
        number = int(label)
    except ValueError:
        return None
    return number if abs(number) < _INT32 else None
