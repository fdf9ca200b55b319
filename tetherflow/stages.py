"""Base classes of stage plugins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from tetherflow.cache.answers import Destination, SideShape, SideStore, When
from tetherflow.cache.layout import Layout

StageName = Literal["evict", "score", "select", "edit", "merge"]


class StageOptions(BaseModel):
    """Options of a stage, written beside `use:` in a recipe; subclass it with the plugin's own."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Stage:
    """One stage of a cache policy.

    Subclass `Evictor`, `Scorer`, `Selector`, `Editor` or `Merger`, declare `Options`, and implement the hook
    of the stage's name with `@hookimpl`. Beside it a stage may implement `place`, `view`, `revise` and
    `switch`. A stage keeps no state between calls: what a policy remembers lives in the cache, as metadata of
    its units or in side stores.

    Args:
        options: validated options; the defaults if omitted.
        name: the plugin's name in the recipe; the class name if omitted.
    """

    stage: ClassVar[StageName]
    Options: ClassVar[type[StageOptions]] = StageOptions
    fixed: ClassVar[tuple[str, ...]] = ()
    """Options that are read but once, such as sizes of side stores: no schedule may move them."""
    metadata: ClassVar[Mapping[str, float]] = {}
    """What is noted of each unit: name, and the value of a new unit. The stages of a policy share them."""
    reads_keys: bool = False
    """Whether this stage reads keys though nothing is recalled; they are then kept unrotated, too."""
    whole_frames: bool = False
    """Whether this stage takes no units smaller than a frame: a cache of tokens or bands is then refused."""

    def __init__(self, options: StageOptions | None = None, *, name: str | None = None) -> None:
        self.options = self.Options() if options is None else options
        self.name = name or type(self).__name__

    def check_layout(self, layout: Layout) -> None:
        """Refuse regions that do not suit this stage; called when a pipeline is built, in latent frames.

        Raises:
            LayoutError: The regions do not suit the stage.
        """

    def side_stores(self, shape: SideShape) -> Mapping[str, SideStore]:
        """Tensors that this stage keeps beside the cache for each layer, by name; they count as its memory.

        Hooks find them as `slots.side(self.name)["name"]`.
        """
        return {}


class Evictor(Stage):
    """Chooses what leaves when a chunk needs room: implements `evict`."""

    stage = "evict"
    destination: ClassVar[Destination] = "drop"
    """Where this evictor's units go."""
    when: When = "commit"
    """When those that go to memory compete for it."""
    eager: bool = False
    """Whether more may leave than must; as many in every layer."""


class Scorer(Stage):
    """Scores the candidates for memory: implements `score`."""

    stage = "score"
    needs: ClassVar[tuple[str, ...]] = ()
    """Names of the scorers whose scores this one builds on; they come before it in the recipe."""
    needs_query: bool = False
    """Whether it reads the pass's queries; memory cannot then be decided as a chunk begins."""
    reads_mean_query: bool = False
    """Whether it reads `candidates.mean_query` whenever it is asked; that is then made first, and alone."""
    reads_norms: bool = False
    """Whether it reads `candidates.key_norms`; they are then kept, and no key is read again."""
    reads_statistics: bool = True
    """Whether it reads mean keys or other statistics; they are then kept, else made of the keys when read."""


class Selector(Stage):
    """Chooses the candidates that stay: implements `select`."""

    stage = "select"
    needs_score: bool = False
    """Whether a recipe must name scorers beside it."""
    blends: bool = False
    """Whether it may return weights."""
    decides_at: int | None = None
    """The layer whose choice all later layers of a chunk share; each decides alone if None."""
    when: When | None = None
    """The only moment at which it can decide; None if it does not matter."""


class Editor(Stage):
    """Edits newcomers before they enter memory: implements `edit`."""

    stage = "edit"


class Merger(Stage):
    """Works what leaves the cache into the bank: implements `merge`."""

    stage = "merge"
