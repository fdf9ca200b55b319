"""What a video shows: a prompt, or prompts over time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Discriminator, Field, StringConstraints, Tag

from tetherflow.cache.events import How
from tetherflow.errors import PromptError
from tetherflow.recipe.section import Misfit, Section
from tetherflow.seconds import Seconds

NOT_BLANK = r"\S"
Prompt = Annotated[str, StringConstraints(pattern=NOT_BLANK)]

KINDS: Final = {"one prompt": "string", "prompts over time": "array"}
"""Names that errors give the two ways to write a video's prompt, and their types in a JSON schema."""
_PLAIN, _TIMED = KINDS


class TimedPrompt(Section):
    """A prompt from some time on."""

    at: Seconds = Field(description="When it begins, such as 20s or 20; the next chunk is the first with it.")
    prompt: Prompt = Field(description="What the video shows from then on.")
    switch: How = Field(
        default="keep",
        description="What the cache does: nothing (keep); be written anew under this prompt (recache); let "
        "go of all but its beginning and its end (flush), or that with a jump in time (cut).",
    )


def _in_order(prompts: tuple[TimedPrompt, ...]) -> tuple[TimedPrompt, ...]:
    """Refuse times that do not begin at 0 and ascend."""
    if not prompts:
        raise ValueError("needs at least 1 entry, which begins at 0s")
    if prompts[0].at != 0:
        raise Misfit((0, "at"), f"the first prompt begins the video, at 0s; not at {prompts[0].at:g}s")
    if prompts[0].switch != "keep":
        raise Misfit((0, "switch"), "the first prompt begins the video, so nothing switches; omit it")
    for index in range(1, len(prompts)):
        now, before = prompts[index].at, prompts[index - 1].at
        if now <= before:
            message = f"{now:g}s is not after {before:g}s, when the prompt before it begins; times ascend"
            raise Misfit((index, "at"), message)
    return prompts


def _kind(value: Any) -> str:
    return _TIMED if isinstance(value, list | tuple) else _PLAIN


VideoPrompt = Annotated[
    Annotated[Prompt, Tag(_PLAIN)]
    | Annotated[tuple[TimedPrompt, ...], AfterValidator(_in_order), Tag(_TIMED)],
    Discriminator(_kind),
]
"""What one video shows: words, or prompts over time."""


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file in UTF-8: its lines that are not blank.

    Raises:
        PromptError: It cannot be read, or holds none.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise PromptError(f"{path} holds no prompt; expected one a line")
    return prompts
