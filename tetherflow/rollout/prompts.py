"""Prompts over time, and the text that a batch's videos show at the moment."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, get_args

import attrs

from tetherflow.backbone import Backbone
from tetherflow.cache.events import Event, How
from tetherflow.recipe import Recipe
from tetherflow.recipe.prompts import TimedPrompt
from tetherflow.recipe.timetable import frame_at


@attrs.frozen
class PromptSwitch:
    """Another prompt from some time on.

    Attributes:
        frame: latent frame at or after which it begins: with the first chunk that begins there or later.
        prompt: what the video shows from then on.
        how: what the cache does.

    Raises:
        ValueError: The cache does nothing of that name.
    """

    frame: int
    prompt: str
    how: How = attrs.field(default="keep", validator=attrs.validators.in_(get_args(How)))


@attrs.frozen
class PromptSchedule:
    """What one video shows over time.

    Attributes:
        prompt: what it shows at its beginning.
        switches: the prompts after it, in order.
    """

    prompt: str
    switches: tuple[PromptSwitch, ...] = ()

    def __attrs_post_init__(self) -> None:
        frames = [0, *(switch.frame for switch in self.switches)]
        if any(now <= before for before, now in pairwise(frames)):
            raise ValueError(f"prompts switch at frames {frames[1:]}; they are after frame 0, and ascend")

    @classmethod
    def of(cls, recipe: Recipe, prompts: str | Sequence[TimedPrompt]) -> PromptSchedule:
        """What a recipe says of one video."""
        if isinstance(prompts, str):
            return cls(prompts)
        first, *later = prompts
        switches = (PromptSwitch(frame_at(recipe, timed.at), timed.prompt, timed.switch) for timed in later)
        return cls(first.prompt, tuple(switches))

    @property
    def texts(self) -> list[str]:
        """All that it shows, in order."""
        return [self.prompt, *(switch.prompt for switch in self.switches)]

    @property
    def timetable(self) -> tuple[tuple[int, How], ...]:
        """When and how it switches. Only videos of one timetable can share a batch, and so a cache."""
        return tuple((switch.frame, switch.how) for switch in self.switches)


class PromptTrack:
    """The text of a batch of videos of one timetable, chunk after chunk.

    All prompts are encoded before the first chunk, since a text encoder may be too large to keep; the
    cross-attention's keys and values of one moment's prompts alone are in memory.

    Args:
        backbone: encodes the prompts.
        prompts: what each of the videos shows.

    Raises:
        ValueError: The timetables differ.
    """

    def __init__(self, backbone: Backbone, prompts: Sequence[str | PromptSchedule]) -> None:
        videos = [PromptSchedule(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        timetables = {video.timetable for video in videos}
        if len(timetables) > 1:
            raise ValueError(
                f"the prompts of a batch switch by {len(timetables)} timetables, but share one cache; "
                "stream videos of different timetables apart"
            )
        self.timetable = timetables.pop() if timetables else ()
        self._transformer = backbone.transformer
        backbone.expect_prompts([prompt for video in videos for prompt in video.texts])
        self._contexts = [backbone.encode_prompts([video.prompt for video in videos])]
        self._contexts += [
            backbone.encode_prompts([video.switches[index].prompt for video in videos])
            for index in range(len(self.timetable))
        ]
        self._passed = 0
        self.text: Any = self._transformer.prepare_text(self._contexts[0])
        """What the transformer made of the prompts of the moment."""

    @property
    def recaches(self) -> bool:
        """Whether any switch writes the cache anew."""
        return any(how == "recache" for _, how in self.timetable)

    def advance(self, frame: int) -> Event | None:
        """Go on to the chunk that begins at a latent frame.

        Returns:
            The switch right before it, with `text` being the new prompts'; None if there is none. Of several
            at once, the last.
        """
        passed = sum(begin <= frame for begin, _ in self.timetable)
        if passed == self._passed:
            return None
        self._passed = passed
        self.text = self._transformer.prepare_text(self._contexts[passed])
        return Event(self.timetable[passed - 1][1], frame)
