"""Base classes of stage plugins."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from tetherflow.cache.layout import Layout
from tetherflow.cache.stage_data import Destination

StageName = Literal["evict", "score", "select", "edit"]


class StageOptions(BaseModel):
    """Options of a stage, written beside `use:` in a recipe; subclass it with the plugin's own."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Stage:
    """One stage of a cache policy.

    Subclass `Evictor`, `Scorer`, `Selector` or `Editor`, declare `Options`, and implement the hook of the
    same name with `@hookimpl`. A stage keeps no state between calls: what a policy remembers lives in the
    cache.

    Args:
        options: validated options; the defaults if omitted.
        name: the plugin's name in the recipe; the class name if omitted.
    """

    stage: ClassVar[StageName]
    Options: ClassVar[type[StageOptions]] = StageOptions

    def __init__(self, options: StageOptions | None = None, *, name: str | None = None) -> None:
        self.options = self.Options() if options is None else options
        self.name = name or type(self).__name__

    def check_layout(self, layout: Layout) -> None:
        """Refuse regions that do not suit this stage; called when a pipeline is built.

        Raises:
            LayoutError: The regions do not suit the stage.
        """


class Evictor(Stage):
    """Chooses what leaves when a chunk needs room: implements `evict`."""

    stage = "evict"
    destination: ClassVar[Destination] = "drop"
    """Where this evictor's units go."""


class Scorer(Stage):
    """Scores the candidates for memory: implements `score`."""

    stage = "score"
    needs: ClassVar[tuple[str, ...]] = ()
    """Names of the scorers whose scores this one builds on; they come before it in the recipe."""


class Selector(Stage):
    """Chooses the candidates that stay: implements `select`."""

    stage = "select"


class Editor(Stage):
    """Edits newcomers before they enter memory: implements `edit`."""

    stage = "edit"
