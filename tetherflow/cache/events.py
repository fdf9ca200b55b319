"""What happens to a rollout between two chunks."""

from __future__ import annotations

from typing import Final, Literal

import attrs

How = Literal["keep", "recache", "flush", "cut"]
"""What the cache does at a prompt switch: nothing; be rewritten under the new prompt; let go of all but its
beginning and end; the same, with a jump in time as at a scene cut, if the policy places one."""

FLUSH_KEEPS: Final = 2
"""Newest frames that stay at a flush or cut unless the policy says otherwise (Infinity-RoPE, 2511.20649)."""


@attrs.frozen
class Event:
    """A prompt switch between two chunks.

    Attributes:
        how: what the cache is to do.
        frame: index of the first latent frame under the new prompt.
    """

    how: How
    frame: int
