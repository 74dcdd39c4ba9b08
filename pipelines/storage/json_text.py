"""JSON text that every reader accepts.

The command line imports this at startup, so it imports neither NumPy nor fsspec, as its neighbors do.
"""

import json
from typing import Any


def to_json(value: Any, indent: int | None = 2) -> str:
    """Encode `value` as JSON. NaN and the infinities, which JSON does not have, become null."""
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
        return json.dumps(finite, indent=indent, ensure_ascii=False)
