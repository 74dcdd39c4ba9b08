"""One shape for all samples of an export: the same members, and the same fields of one type each in their JSON.

Readers such as Hugging Face `datasets` and energon learn from the first few samples what all samples have. A crawl is
not like that: a caption here, a number there, and null until some image declares its camera. So an export surveys its
samples first (`survey`, one `Shape` a shard, added up), and then writes all of them alike (`conform`):

- A field that is null everywhere is left out, and one that is null somewhere is text, empty there.
- Integers beside fractions become fractions. A field whose type changes otherwise becomes text: the JSON of its values.
- Objects keep their fields, lists of one plain type their items. Any other nesting becomes JSON text.
- A member beside the image that some samples lack is left out. Captions are not: they are empty where there is none.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pipelines.storage.json_text import to_json

OURS = "curate"  # field of the JSON with our columns
CRAWL = "crawl"  # field with the crawl's JSON as a whole, where that is no object of reasonable size
MAX_FIELDS = 256  # of one object; with more, its keys are values rather than names
_MAX_DEPTH = 4
_INT64 = 1 << 63

Path = tuple[str, ...]  # of a field: the names of the objects around it, and its own
_PLAIN = {bool: "bool", int: "int", float: "float", str: "text"}


@dataclass
class Shape:
    """What the samples of an export have: how many, their members, captions, and types of fields."""

    num_samples: int = 0
    num_captions: int = 0
    members: Counter[str] = field(default_factory=Counter)  # samples by suffix, beside image, class, JSON and caption
    kinds: Counter[tuple[Path, str]] = field(default_factory=Counter)  # samples by field and type of its value

    def survey(self, values: Mapping[str, Any], suffixes: Iterable[str], has_caption: bool) -> None:
        """Count a sample."""
        self.num_samples += 1
        self.num_captions += has_caption
        self.members.update(tuple(suffixes))
        self._count((), values)

    def add(self, other: "Shape") -> None:
        """Count the samples of another shape, too."""
        self.num_samples += other.num_samples
        self.num_captions += other.num_captions
        self.members.update(other.members)
        self.kinds.update(other.kinds)
        children = Counter(path[:-1] for path, _ in self.kinds)
        for path in [path for path, count in children.items() if count > 8 * MAX_FIELDS]:
            self._collapse(path)  # else keys that are values would take memory without bound

    @property
    def with_captions(self) -> bool:
        """Whether each sample gets a caption: one of them has one."""
        return self.num_captions > 0

    @property
    def common(self) -> frozenset[str]:
        """Suffixes of members that every sample has."""
        return frozenset(suffix for suffix, count in self.members.items() if count == self.num_samples)

    @property
    def left_out(self) -> dict[str, int]:
        """Samples by suffix of a member that not every sample has."""
        return {suffix: count for suffix, count in sorted(self.members.items()) if count < self.num_samples}

    def conform(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a sample's JSON as all samples have them."""
        if self.is_crowded:
            others = {name: value for name, value in values.items() if name != OURS}
            values = {CRAWL: to_json(others, indent=None), OURS: values[OURS]}
        return self._object((), values)

    @property
    def is_crowded(self) -> bool:
        """Whether the crawl's JSON has too many fields to keep them apart."""
        return ((), "crowd") in self.kinds or len(self._fields.get((), ())) > MAX_FIELDS

    def types(self) -> dict[str, str]:
        """Types of the fields at the top of the JSON: object, bool, int, float, text, or `list:` one of these."""
        return {path[0]: kind for path, kind in self._types.items() if len(path) == 1}

    def _count(self, path: Path, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            below = (*path, name)
            kind = _kind(value)
            if kind == "object" and len(below) > _MAX_DEPTH:
                kind = "other"
            self.kinds[below, kind] += 1
            if kind == "object":
                self._count(below, value)

    def _collapse(self, path: Path) -> None:
        for known in [known for known in self.kinds if known[0][: len(path)] == path and len(known[0]) > len(path)]:
            if path or known[0][0] != OURS:
                del self.kinds[known]
        self.kinds[path, "crowd" if not path else "other"] += 1

    @cached_property
    def _types(self) -> dict[Path, str]:
        """Type of each field that is written, in the order in which they were first seen."""
        found = dict[Path, Counter[str]]()
        for (path, kind), count in self.kinds.items():
            if path:
                found.setdefault(path, Counter())[kind] += count
        if self.is_crowded:
            found = {(CRAWL,): Counter(text=self.num_samples)} | {
                path: kinds for path, kinds in found.items() if path[0] == OURS
            }
        children = Counter(path[:-1] for path in found)
        types = {path: self._type(kinds) for path, kinds in found.items()}
        written = set[Path]()
        for path in sorted(types, key=len, reverse=True):  # what is within an object comes before it
            if types[path] == "object" and children[path] > MAX_FIELDS:
                types[path] = "text"
            if types[path] and (types[path] != "object" or path in written):
                written |= {path, path[:-1]}
        return {
            path: kind
            for path, kind in types.items()
            if kind and path in written and all(types[path[:i]] == "object" for i in range(1, len(path)))
        }

    def _type(self, kinds: Counter[str]) -> str | None:
        names = {name for name in kinds if name != "null"}
        if not names:
            return None
        if names == {"object"}:
            return "object"
        everywhere = sum(count for name, count in kinds.items() if name != "null") == self.num_samples
        for start in ("", "list:"):
            if names == {f"{start}int", f"{start}float"}:
                names = {f"{start}float"}
        (name, *others) = names
        if others or name == "other" or name == "list" or not everywhere:
            return "text"
        return name

    @cached_property
    def _fields(self) -> dict[Path, dict[str, None]]:
        """Names of the fields directly within each object, in order."""
        found = dict[Path, dict[str, None]]()
        for path, _ in self.kinds:
            if path:
                found.setdefault(path[:-1], {})[path[-1]] = None
        return found

    @cached_property
    def _written(self) -> dict[Path, dict[str, str]]:
        """Names and types of the fields that are written, by the object they are in."""
        found = dict[Path, dict[str, str]]()
        for path, kind in self._types.items():
            found.setdefault(path[:-1], {})[path[-1]] = kind
        return found

    def _object(self, path: Path, values: Any) -> dict[str, Any]:
        inside = values if isinstance(values, dict) else {}
        return {
            name: self._object((*path, name), inside.get(name)) if kind == "object" else _cast(inside.get(name), kind)
            for name, kind in self._written.get(path, {}).items()
        }


def _kind(value: Any) -> str:
    """Type of a JSON value: null, bool, int, float, text, object, `list:` one of these, or other."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "null"
    if isinstance(value, dict):
        return "object"
    if isinstance(value, list):
        kinds = {_kind(item) for item in value}
        if kinds == {"int", "float"}:
            return "list:float"
        return f"list:{kinds.pop()}" if len(kinds) == 1 and kinds <= set(_PLAIN.values()) else "other"
    if isinstance(value, int) and not -_INT64 <= value < _INT64:
        return "other"
    return _PLAIN[type(value)]


def _cast(value: Any, kind: str) -> Any:
    if kind == "text":
        if _kind(value) == "null":
            return ""
        return value if isinstance(value, str) else to_json(value, indent=None)
    if kind == "float":
        return float(value)
    if kind == "list:float":
        return [float(item) for item in value]
    return value
