"""Times in a video, as recipes write them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, WithJsonSchema

_TIME: Final = r"^\d+(\.\d*)?s$"


def _seconds(value: Any) -> Any:
    """Read `20s`; numbers are seconds already."""
    if isinstance(value, str) and re.match(_TIME, value):
        return float(value[:-1])
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ValueError(f"{value!r} is no time in a video; expected seconds, such as 20s or 20")
    return value


Seconds = Annotated[
    float,
    BeforeValidator(_seconds),
    WithJsonSchema(
        {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": _TIME}]},
        mode="validation",
    ),
]
"""A time in a video, such as `20s` or 20."""
