"""Denoising passes as CUDA graphs: recorded once, then replayed with one launch instead of thousands."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from typing import Any, Final

import attrs
import torch
from torch import Tensor

from tetherflow.backbone import Transformer
from tetherflow.cache.engine import CacheEngine

_EAGER_FIRST: Final = 4
"""Passes of one kind that run as usual before one is recorded: kernels are compiled and chosen in them, and a
cache that is still filling changes its kind with every chunk."""


@attrs.frozen(eq=False)
class _Recording:
    """A pass that was recorded.

    Attributes:
        kind: of pass.
        text: the prompts that it reads; kept, so that no others come to lie where they were.
        latents: its input, to be written before it is replayed.
        timesteps: likewise.
        flow: its result.
        graph: the pass.
    """

    kind: Hashable
    text: Any
    latents: Tensor
    timesteps: Tensor
    flow: Tensor
    graph: torch.cuda.CUDAGraph


class GraphedTransformer:
    """Calls a transformer in the denoising passes of one rollout, replaying them where they repeat.

    Between the passes of a full cache nothing differs but the values in buffers that stay where they are, so
    the host need not launch their kernels one by one: on a slow host that takes longer than computing them.
    The results are the same, bit for bit. The pass whose keys and values stay is never replayed, nor one in
    which the policy decides, since plugins are free to do there what they like.

    Args:
        transformer: the backbone's; what it computes depends on its arguments and its weights alone.
    """

    def __init__(self, transformer: Transformer) -> None:
        self._transformer = transformer
        self._recording: _Recording | None = None
        self._kind: Hashable = None
        self._text: Any = None
        self._seen = 0
        self._fails = False

    def __call__(self, latents: Tensor, timesteps: Tensor, text: Any, cache: CacheEngine) -> Tensor:
        """Flow of noisy latents, as the transformer's own call returns it."""
        recording = self._recording_for(latents, timesteps, text, cache)
        if recording is None:
            return self._transformer(latents, timesteps, text, cache)
        recording.latents.copy_(latents)
        recording.timesteps.copy_(timesteps)
        recording.graph.replay()
        return recording.flow.clone()  # the next pass overwrites it

    def _recording_for(
        self, latents: Tensor, timesteps: Tensor, text: Any, cache: CacheEngine
    ) -> _Recording | None:
        """The pass as it was recorded, now or before; None if it is not worth recording, or cannot be."""
        kind = None if self._fails else cache.pass_kind()
        if kind is None:
            return None
        kind = (kind, latents.shape, latents.dtype)
        known = self._recording
        if known is not None and known.kind == kind and known.text is text:
            return known
        if not self._recurs(kind, text):
            return None
        self._recording = None  # frees the memory of the one before
        try:
            self._recording = self._record(kind, latents, timesteps, text, cache)
        except RuntimeError as error:
            self._fails = True
            reason = str(error).strip().split("\n")[0]
            message = f"denoising passes cannot be recorded and are launched kernel by kernel: {reason}"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        return self._recording

    def _recurs(self, kind: Hashable, text: Any) -> bool:
        """Whether enough passes of this kind have been called to expect more."""
        if kind != self._kind or text is not self._text:
            self._kind, self._text, self._seen = kind, text, 0
        self._seen += 1
        return self._seen > _EAGER_FIRST

    def _record(
        self, kind: Hashable, latents: Tensor, timesteps: Tensor, text: Any, cache: CacheEngine
    ) -> _Recording:
        """Record a pass, without computing it."""
        graph, latents, timesteps = torch.cuda.CUDAGraph(), latents.clone(), timesteps.clone()
        # Other threads may allocate and copy meanwhile: only what this one does must be recordable.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            flow = self._transformer(latents, timesteps, text, cache)
        return _Recording(kind, text, latents, timesteps, flow, graph)
