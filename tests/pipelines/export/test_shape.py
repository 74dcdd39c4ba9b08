"""Fields of one type each, whatever a crawl's JSON holds."""

import json
from typing import Any

import pytest

from pipelines.export.shape import MAX_FIELDS, Shape

OURS = {"curate": {"key": "k"}}


def conformed(*samples: dict[str, Any]) -> list[dict[str, Any]]:
    """The JSON of samples as they are written; two halves are surveyed apart and added, as shards are."""
    whole = Shape()
    for half in (samples[: len(samples) // 2], samples[len(samples) // 2 :]):
        part = Shape()
        for values in half:
            part.survey({**values, **OURS}, (), False)
        whole.add(part)
    found = [whole.conform({**values, **OURS}) for values in samples]
    assert all(values.pop("curate") == OURS["curate"] for values in found)
    assert len({json.dumps(_types(values)) for values in found}) == 1
    return found


def _types(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _types(inner) for name, inner in value.items()}
    return [_types(value[0])] if isinstance(value, list) else type(value).__name__


@pytest.mark.parametrize(
    ("values", "written"),
    [
        ([1, 2], [1, 2]),
        ([1, 2.5], [1.0, 2.5]),
        ([True, False], [True, False]),
        ([True, 1], ["true", "1"]),
        ([None, "a"], ["", "a"]),
        ([None, 0.5], ["", "0.5"]),
        ([float("nan"), 0.5], ["", "0.5"]),
        (["a", 1], ["a", "1"]),
        ([1, 1 << 70], ["1", str(1 << 70)]),
        ([[1], [2.5, 3]], [[1.0], [2.5, 3.0]]),
        ([[], [2]], ["[]", "[2]"]),
        ([["é"], ["b", "c"]], [["é"], ["b", "c"]]),
        ([[[1]], [2]], ["[[1]]", "[2]"]),
        ([{"b": 1}, {"b": 2, "c": None}], [{"b": 1}, {"b": 2}]),
        ([{"b": 1}, None], [{"b": "1"}, {"b": ""}]),
        ([{"b": {"c": [1]}}, {"b": {"c": [2]}}], [{"b": {"c": [1]}}, {"b": {"c": [2]}}]),
        ([{"b": 1}, "text"], ['{"b": 1}', "text"]),
        ([{"a": {"a": {"a": {"b": {"c": 1}}}}}] * 2, [{"a": {"a": {"a": {"b": '{"c": 1}'}}}}] * 2),
    ],
)
def test_a_field_has_one_type_in_all_samples(values: list[Any], written: list[Any]) -> None:
    assert [found["f"] for found in conformed(*({"f": value} for value in values))] == written


@pytest.mark.parametrize("nothing", [None, {}, {"a": None}])
def test_a_field_without_any_value_is_left_out(nothing: Any) -> None:
    assert conformed({"f": nothing, "g": 1}, {"g": 2}) == [{"g": 1}, {"g": 2}]


def test_an_object_whose_keys_are_values_is_text_and_so_is_a_crowd_of_fields() -> None:
    num = 3 * MAX_FIELDS  # within the object, or at the top
    inside = [{"f": {f"id{i}": i}} for i in range(num)]
    assert conformed(*inside) == [{"f": json.dumps(values["f"])} for values in inside]
    top = [{f"id{i}": i} for i in range(num)]
    assert conformed(*top) == [{"crawl": json.dumps(values)} for values in top]


def test_memory_is_bounded_where_every_shard_brings_other_keys() -> None:
    shape = Shape()
    for shard in range(40):
        part = Shape()
        for i in range(100):
            part.survey({f"id{shard}-{i}": 1, "f": {f"id{shard}-{i}": 1}, **OURS}, (), False)
        shape.add(part)
        assert len(shape.kinds) < 20 * MAX_FIELDS
    assert shape.conform({"id7-7": 1, "f": {"a": 2}, **OURS}) == {"crawl": '{"id7-7": 1, "f": {"a": 2}}', **OURS}


def test_members_that_some_lack_are_counted() -> None:
    shape = Shape()
    shape.survey(OURS, ("npy", "cls"), True)
    shape.survey(OURS, ("cls",), False)
    assert (shape.common, shape.left_out, shape.with_captions) == (frozenset({"cls"}), {"npy": 1}, True)
