"""What all parts of a recipe share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Misfit(ValueError):
    """Values of one section that do not fit together.

    Args:
        key: the key that the message is about, from the section.
        message: what does not fit, and what would.
    """

    def __init__(self, key: tuple[str | int, ...], message: str) -> None:
        super().__init__(message)
        self.key = key


class Section(BaseModel):
    """A part of a recipe: no unknown keys, no silent conversions, no changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
