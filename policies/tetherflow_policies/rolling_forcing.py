"""Rolling Forcing's cache: the first frames as an anchor right before the working window."""

from __future__ import annotations

import torch

from tetherflow import Eviction, Evictor, Layout, Placement, Slots, hookimpl
from tetherflow.errors import LayoutError
from tetherflow_policies.windowing import drop_oldest, refuse_memory


class RollingForcing(Evictor):
    """Keep the first frames as an anchor that stands right before the working window, wherever that is.

    Rolling Forcing (arXiv 2509.25161), its attention sink. The anchor is the sink region, A frames, and the
    working window what recent holds beside the chunk, w frames. For a chunk from frame c on, anchor frame i
    stands at c − w − A + i; every other unit stands where its frame is in the video, and so does the query.
    The anchor is thus as near to the window as it was when the video began. As attention sees differences of
    positions alone, it is up to rounding what 'sink-window' reads at block-relative positions; here positions
    grow with the video, as published. They are the policy's own: `cache.positions` changes nothing.

    Kept of the published code: the anchor is stored unrotated and rotated in every chunk. Left: the joint
    denoising of up to five chunks at as many noise levels, which is a sampler's and not a cache's (a chunk is
    denoised alone, so |q| is the chunk and w at most 21 − 3 − 3 = 15); and that the context pass there reads
    the newest 21 frames without the anchor once 24 are held: here all passes of a chunk read the same.
    """

    def check_layout(self, layout: Layout) -> None:
        """Refuse regions without an anchor, with a bank after it, or with a memory that nothing fills."""
        refuse_memory("rolling-forcing", layout)
        if layout.bank:
            raise LayoutError("'rolling-forcing' has nothing between anchor and window; set the bank to 0")
        if not layout.sink:
            raise LayoutError(
                "'rolling-forcing' anchors the window to the sink, but the regions give it 0 frames; "
                "make it 1 or more, or use 'sliding-window'"
            )

    @hookimpl
    def evict(self, slots: Slots, count: int) -> Eviction:
        """Choose the `count` oldest units past the anchor."""
        return drop_oldest(slots, count)

    @hookimpl
    def place(self, slots: Slots) -> Placement:
        """Place the anchor right before the first frame of the working window, all else where it was."""
        frames, anchor = slots.frames, len(slots.regions.sink)
        if anchor == slots.held:
            return frames
        before = frames[:, anchor, None] - slots.layout.sink // slots.layout.parts
        return torch.cat([before + frames[:, :anchor], frames[:, anchor:]], dim=1)
