"""JSON as any reader takes it."""

import json
from typing import Any


def to_json(value: Any, indent: int | None = 2) -> str:
    """JSON of `value`. Numbers that it does not have, NaN and the infinite ones, become null."""
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
        return json.dumps(finite, indent=indent, ensure_ascii=False)
