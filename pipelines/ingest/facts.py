"""Finds what the crawl says of an image, in the files that belong to it: columns of the manifest.

The usual ones have names of their own in POOL_SCHEMA. Any other number, truth value or text at the top of an image's
JSON is a further column, `crawl_` and its name. The JSON itself stays beside the image as it was crawled.
"""

import codecs
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pipelines.pool.manifest import FACT_PREFIX, MAX_FACTS, common_type

UNKNOWN = "unknown"  # domain of a url without a host
_LONGEST_HOST = 253
_MAX_TEXT = 1 << 16  # characters of a caption or url; what is longer is cut
_MAX_FACT = 1000  # characters of another text; what is longer is in the JSON only
_MAX_NAME = 48
_URLS = ("url", "image_url", "img_url", "image_link")
_CAPTIONS = ("caption", "captions", "text", "txt", "description", "alt", "alt_text", "title", "prompt")
_SIMILARITIES = ("similarity", "clip_similarity", "clip_score")
_SIZES = {"original_width": "original_width", "original_height": "original_height"}
_LEFT_OUT = {
    *("key", "__key__", "__url__", "uid", "status", "error_message", "exif", "sha256", "md5", "file_name"),
    *_URLS, *_CAPTIONS, *_SIMILARITIES, *_SIZES,
}  # fmt: skip
# UTF-32 comes first: its BOM begins with that of UTF-16.
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip

Fact = bool | int | float | str


class Facts(NamedTuple):
    """What the crawl says of one image: the columns of POOL_SCHEMA, and the others by their name in the manifest."""

    crawl_key: str
    url: str | None
    domain: str | None
    caption: str | None
    uid: str | None
    original_width: int | None
    original_height: int | None
    similarity: float | None
    others: dict[str, Fact]

    @property
    def columns(self) -> dict[str, Any]:
        """Values by column."""
        return {name: value for name, value in self._asdict().items() if name != "others"} | self.others


def facts(member: str, sidecars: Mapping[str, bytes], caption_column: str | None = None) -> Facts:
    """Read what belongs to the image `member`. Nothing in the bytes makes it raise."""
    given = _object(sidecars.get("json"))
    listed = _object(sidecars.get("metadata.json"))
    values = {name.lower(): value for name, value in (listed | given).items()}
    url = _first_text(values, _URLS)
    similarity = next((float(values[name]) for name in _SIMILARITIES if _is_number(values.get(name))), None)
    return Facts(
        crawl_key=_crawl_key(member, values),
        url=url,
        domain=None if url is None else domain_of(url),
        caption=_caption(values, sidecars, caption_column),
        uid=_text(values.get("uid")),
        original_width=_size(values.get("original_width")),
        original_height=_size(values.get("original_height")),
        similarity=similarity,
        others=_others(values),
    )


def domain_of(url: str) -> str:
    """Host of a url in lower case without `www.`, or UNKNOWN."""
    try:
        host = urlsplit(url).hostname
    except ValueError:
        host = None
    return (host or UNKNOWN).removeprefix("www.")[:_LONGEST_HOST]


def text_of(content: bytes) -> str:
    """Decode a caption by its BOM, otherwise as UTF-8. Bytes that cannot be decoded are escaped."""
    for bom, encoding in _BOMS:
        if content.startswith(bom):
            return _printable(content.removeprefix(bom).decode(encoding, "backslashreplace"))
    return _printable(content.decode("utf-8", "backslashreplace"))


def kinds(images: Iterable[Facts]) -> dict[str, tuple[str, int]]:
    """Type and number of values of each further column of a shard: the MAX_FACTS that most images have."""
    counts, found = Counter[str](), dict[str, str]()
    for image in images:
        for name, value in image.others.items():
            kind = _kind(value)
            found[name] = common_type(found.get(name, kind), kind)
            counts[name] += 1
    names = sorted(counts, key=lambda name: (-counts[name], name))[:MAX_FACTS]
    return {name: (found[name], counts[name]) for name in sorted(names)}


def column(name: str, kind: str, images: Sequence[Facts]) -> list[Fact | None]:
    """Values of a further column, all of one type."""
    values = [image.others.get(name) for image in images]
    if kind == "string":
        return [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    return [float(value) if kind == "double" and value is not None else value for value in values]


def _object(content: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(content) if content else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _crawl_key(member: str, values: Mapping[str, Any]) -> str:
    base = member.rpartition("/")[2]
    named = next((found for name in ("__key__", "key") if (found := _text(values.get(name)))), None)
    return named or base.rpartition(".")[0] or base


def _caption(values: Mapping[str, Any], sidecars: Mapping[str, bytes], named: str | None) -> str | None:
    if named is not None:
        return _first_text(values, (named.lower(),))
    beside = text_of(sidecars["txt"]).strip()[:_MAX_TEXT] if sidecars.get("txt") else None
    return beside or _first_text(values, _CAPTIONS)


def _first_text(values: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first text of some names; of a list of texts, its first."""
    for name in names:
        value = values.get(name)
        if isinstance(value, list):
            value = next((each for each in value if isinstance(each, str)), None)
        if isinstance(value, str) and value:
            return _printable(value)[:_MAX_TEXT]
    return None


def _text(value: Any) -> str | None:
    if isinstance(value, str) and value:
        return _printable(value)[:_MAX_FACT]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63 else None


def _printable(text: str) -> str:
    """Text that parquet takes: JSON may hold halves of surrogate pairs."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1 << 63 if isinstance(value, int) else math.isfinite(value)


def _size(value: Any) -> int | None:
    return int(value) if _is_number(value) and 0 < value < 1 << 31 else None


def _others(values: Mapping[str, Any]) -> dict[str, Fact]:
    found: dict[str, Fact] = {}
    for name, value in values.items():
        if name in _LEFT_OUT:
            continue
        if isinstance(value, str):
            value = _printable(value) if 0 < len(value) <= _MAX_FACT else None
        elif not isinstance(value, bool) and not _is_number(value):
            value = None
        plain = re.sub(r"[^a-z0-9]+", "_", name[: 2 * _MAX_NAME]).strip("_")[:_MAX_NAME]
        if value is not None and plain and plain != "key":
            found.setdefault(FACT_PREFIX + plain, value)
    return found


def _kind(value: Fact) -> str:
    return {bool: "bool", int: "int64", float: "double"}.get(type(value), "string")
