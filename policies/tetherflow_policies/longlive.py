"""LongLive: a frame sink and a short window, made for prompts that switch."""

from __future__ import annotations

from tetherflow import Event, Eviction, Evictor, Layout, Slots, hookimpl
from tetherflow_policies.windowing import drop_oldest, refuse_memory


class LongLive(Evictor):
    """Keep the first frames for good and a short window, and stand ready to be written anew at a switch.

    LongLive (arXiv 2509.22622): short-window attention with a frame sink (section 3.3), and three ways to
    switch prompts, which its ablation of KV recache (section 3.1) compares:

    - `keep`: the cache stays as it is, and the old prompt lives on in it.
    - `flush`: nothing but the sink stays, and what the old prompt showed is lost with it. A `cut` does the
      same; LongLive has no jump in time.
    - `recache`: all stays, to be written anew: context passes under the new prompt over the newest latent
      frames, as many as the window holds, overwrite their keys and values. Those passes are the session's;
      this policy keeps the units for them.

    Kept of the published code: the sink is global, so that a recache leaves it alone. Left: that a switch
    within the first 12 frames overwrites the sink nevertheless, and that the pass there takes in as many
    frames as sink and window hold together, though those that do not fit into the window are not written.
    """

    def check_layout(self, layout: Layout) -> None:
        """Refuse a memory region, which nothing would ever recall into."""
        refuse_memory("longlive", layout)

    @hookimpl
    def evict(self, slots: Slots, count: int) -> Eviction:
        """Choose the `count` oldest units past the sink."""
        return drop_oldest(slots, count)

    @hookimpl
    def switch(self, event: Event) -> int | None:
        """Let go of all but the sink at a flush or cut; else keep everything."""
        return 0 if event.how in ("flush", "cut") else None
