"""Knows the columns of a parquet file: which hold images, and how the others become JSON."""

import base64
import json
import math
import re
from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pyarrow as pa

IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img", "bytes", "image_bytes", "content")
_LIKELY = re.compile(r"image|img|jpe?g|png|webp|photo|picture|pic|pixel|data|bytes|content", re.IGNORECASE)


def image_columns(schema: pa.Schema, named: str | None = None) -> tuple[str, ...]:
    """Names of the columns with image bytes, the likeliest first; empty without one.

    They are Hugging Face's structs of bytes and path, and binary columns with a usual name; else binary columns whose
    name sounds like one. `named` is a column that the user has named. A name that two columns share is ignored, because
    it is ambiguous.
    """
    names = [field.name for field in schema if _holds_bytes(field.type) and schema.names.count(field.name) == 1]
    if named is not None:
        return (named,) if named in names else ()
    known = [name for name in IMAGE_COLUMNS if name in names]
    structs = [name for name in names if pa.types.is_nested(schema.field(name).type) and name not in known]
    return tuple(known + structs) or tuple(name for name in names if _LIKELY.search(name))


def _holds_bytes(kind: pa.DataType) -> bool:
    """Whether a type is bytes, Hugging Face's struct of bytes and path, or a list of either."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_binary(kind.field(index).type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def text_column(schema: pa.Schema) -> str | None:
    """Name of a column that should hold images by its name, and holds text."""
    types = pa.types
    texts = [each.name for each in schema if types.is_string(each.type) or types.is_large_string(each.type)]
    return next((name for name in texts if name in IMAGE_COLUMNS or re.search("image|img", name, re.IGNORECASE)), None)


def described(schema: pa.Schema, images: tuple[str, ...]) -> list[str]:
    """Names of the columns that go into an image's JSON: all but those of images and of plain bytes."""
    return [
        field.name
        for field in schema
        if field.name not in images and schema.names.count(field.name) == 1 and not _holds_bytes(field.type)
    ]


def values(column: pa.Array) -> list[Any]:
    """Values of a column as Python objects; text may be invalid UTF-8, in spite of its type."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        return column.cast(_with_bytes(column.type)).to_pylist()  # type: ignore[no-any-return]
    except (ValueError, OverflowError, pa.ArrowException):  # a date beyond the calendar of Python
        return [_value(cell) for cell in column]


def _value(cell: pa.Scalar) -> Any:
    try:
        return cell.as_py()
    except (ValueError, OverflowError, pa.ArrowException):
        return str(getattr(cell, "value", None))


def _with_bytes(kind: pa.DataType) -> pa.DataType:
    """The same type with bytes instead of text."""
    types = pa.types
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return pa.large_binary()
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, _with_bytes(field.type)) for field in kind])
    if types.is_map(kind):
        return pa.map_(_with_bytes(kind.key_type), _with_bytes(kind.item_type))
    if types.is_list(kind) or types.is_large_list(kind):
        make: Callable[[pa.DataType], pa.DataType] = pa.list_ if types.is_list(kind) else pa.large_list
        return make(_with_bytes(kind.value_type))
    return kind


def as_json(row: dict[str, Any]) -> bytes:
    """A row as JSON, in which NaN and infinity are null, dates are ISO 8601 and bytes that are no text base64."""
    return json.dumps(_plain(row), ensure_ascii=False).encode("utf-8", "backslashreplace")


def _plain(value: Any) -> Any:
    match value:
        case bool() | int() | str() | None:
            return value
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {str(key): _plain(each) for key, each in value.items()}
        case list() | tuple():
            return [_plain(each) for each in value]
        case bytes():
            text = value.decode("utf-8", "backslashreplace")
            return text if text.isprintable() else base64.b64encode(value).decode()
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case Decimal():
            return _plain(float(value))
        case UUID():
            return str(value)
        case _:
            return str(value)


def in_a_line(path: str, most: int) -> str:
    """Text without control characters, and no longer than `most`."""
    return "".join(char if char.isprintable() else " " for char in path)[:most]


def images(column: pa.Array) -> Iterator[list[tuple[bytes | None, str | None]]]:
    """Yield (bytes, path) of each image in each row of a column; the path is only a label, and never opened.

    One row is in memory at a time: many rows of a dictionary may be one image.
    """
    for cell in column:
        try:
            value = cell.as_py()
        except UnicodeDecodeError:  # in a path
            value = pa.array([cell]).cast(_with_bytes(cell.type))[0].as_py()
        yield [_image(each) for each in (value if isinstance(value, list) else [value])]


def _image(value: Any) -> tuple[bytes | None, str | None]:
    if not isinstance(value, dict):
        return value, None
    path = value.get("path")
    if isinstance(path, bytes):
        path = path.decode("utf-8", "backslashreplace")
    return value.get("bytes"), path if isinstance(path, str) else None
