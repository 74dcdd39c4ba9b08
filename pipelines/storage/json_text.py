"""JSON text that every reader accepts.

The command line imports this at startup, so it imports neither NumPy nor fsspec, as its neighbors do.
"""

import json
import re
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")


def to_json(value: Any, indent: int | None = 2) -> str:
    """Encode `value` as JSON. NaN and the infinities, which JSON does not have, become null.

    Bytes of file names that are not UTF-8, surrogates in Python, are escaped, so that the text can be encoded.
    """
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
        text = json.dumps(finite, indent=indent, ensure_ascii=False)
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
