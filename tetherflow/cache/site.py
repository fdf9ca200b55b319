"""One layer in one chunk: where a policy decides."""

from __future__ import annotations

import attrs

from tetherflow.cache.beside import Beside
from tetherflow.cache.checks import Checks
from tetherflow.cache.events import Event
from tetherflow.cache.interfaces import Policy
from tetherflow.cache.layout import Layout, Regions
from tetherflow.cache.placing import Placing
from tetherflow.cache.reading import LiveReader
from tetherflow.cache.slots import Lazy, Slots
from tetherflow.cache.store import LayerStore


@attrs.frozen(eq=False)
class Site:
    """What the engine's parts need to know of a layer to let a policy decide there.

    Attributes:
        layer: index of the layer.
        chunk: index of the chunk.
        store: the layer's buffers.
        policy: decides.
        checks: takes the conditions on its results.
        beside: does what the decision need not wait for.
        placing: rotates keys.
        layout: the regions' sizes, in units.
        regions: which ranks make up each region.
        incoming: units that the chunk brings.
        current: ranks of the chunk's units; none before it is in.
        first_frame: index in the video of the chunk's first frame.
        event: the prompt switch right before the chunk, if there was one.
    """

    layer: int
    chunk: int
    store: LayerStore
    policy: Policy
    checks: Checks
    beside: Beside
    placing: Placing
    layout: Layout
    regions: Regions
    incoming: int
    current: range
    first_frame: int
    event: Event | None

    def slots(self, query: Lazy | None = None) -> Slots:
        """The layer's units as a stage sees them.

        Args:
            query: unrotated queries of the pass, `[B, F, tokens of a frame, H, D]`, if there is one.
        """
        self.beside.join()  # the stage may read what is being written
        order = self.store.order
        return Slots(
            self.layer,
            self.chunk,
            self.layout,
            self.incoming,
            self.store.unit_origins(order),
            regions=self.regions,
            current=self.current,
            first_frame=self.first_frame,
            event=self.event,
            metadata=self.store.book.metadata(order),
            sides=self.store.sides,
            reader=LiveReader(self.store, order, self.placing),
            query=query,
        )
