"""Where a steady chunk's time goes."""

from __future__ import annotations

from functools import partial
from typing import Any, Final, cast

import attrs
import torch

from tetherflow.bench.kernels import Inner, KernelWatch
from tetherflow.bench.stopwatch import PartWatch, Stopwatch
from tetherflow.cache import CacheEngine
from tetherflow.cache.interfaces import Policy
from tetherflow.rollout.session import Session
from tetherflow.tuning import Tuning

ATTENTION: Final = "attention"
PROMPT: Final = "prompt attention"
POLICY: Final = "policy"
CACHE: Final = "cache"
ROTATION: Final = "rotation"
PRODUCTS: Final = "products"
GLUE: Final = "glue"
PARTS: Final = (ATTENTION, PROMPT, PRODUCTS, GLUE, POLICY, CACHE, ROTATION)
"""Attention on the cache and on the prompt; the transformer's matrix products, and what lies between them;
hooks of the policy's stages; what the engine copies and keeps in order; normalising and rotating queries and
keys, and writing keys and values to slots."""

_PRODUCTS: Final = Inner(
    PRODUCTS,
    outer=GLUE,
    operations=(
        "aten::addmm",
        "aten::mm",
        "aten::_addmm_activation",
        "aten::_scaled_mm",
        "tetherflow::fp8_linear",
        "tetherflow::fp8_linear_gelu",
    ),
)

_HOOKS: Final = ("evict", "score", "select", "edit")
_ENGINE: Final = ("begin", "attend", "attend_packed", "keep", "keep_packed", "end")
_ROTATION: Final = (
    "begin",
    "write",
    "write_packed",
    "query_of",
    "mean_of",
    "mean_query_of",
    "rotate",
    "turn",
)


@torch.inference_mode()
def measure_parts(
    session: Session, tuning: Tuning, prompt: str, products: float, chunks: int = 3
) -> dict[str, float]:
    """Seconds of each part in a chunk of a full cache; on a GPU, how long it is busy, whoever waits for whom.

    Args:
        session: whose chunks; it generates a few of its own.
        tuning: how its backbone computes.
        prompt: what it is to show; how long it is may matter.
        products: seconds of a chunk's products alone. On a CPU, where nothing looks into a compiled graph,
            they count as its products, and glue is what is left.
        chunks: how many to measure, after the cache is full.
    """
    backbone = session.backbone
    watch: PartWatch = Stopwatch(session.device)
    if session.device.type == "cuda":
        watch = KernelWatch(_PRODUCTS)
    text = backbone.transformer.prepare_text(backbone.encode_prompts([prompt]))
    noise = session.noise([torch.Generator().manual_seed(0)], session.chunk_frames)
    cache = session.new_cache(1)
    for _ in range(-(-session.layout.budget // session.chunk_frames) + 2):
        session.sampler.denoise(cache, text, noise)
    _watch_cache(cache, watch)
    on_prompt = attrs.evolve(tuning.attention, watch=partial(watch.wrap, PROMPT))
    backbone.tune(attrs.evolve(tuning, attention=on_prompt))
    try:
        with watch:
            for _ in range(chunks):
                with watch.part(GLUE):
                    session.sampler.denoise(cache, text, noise)
    finally:
        backbone.tune(tuning)
        for name in _ENGINE:  # else the cache would hold itself, and its memory would count in what follows
            delattr(cache, name)
    found = {part: seconds / chunks for part, seconds in watch.seconds().items()}
    if isinstance(watch, Stopwatch):
        found |= {PRODUCTS: products, GLUE: found[GLUE] - products}
    return {part: found.get(part, 0.0) for part in PARTS}


def _watch_cache(cache: CacheEngine, watch: PartWatch) -> None:
    """Count an engine's own work, and that of what it calls, as parts."""
    cache.attention = attrs.evolve(cache.attention, watch=partial(watch.wrap, ATTENTION))
    for name in _ROTATION:
        setattr(cache.placing, name, watch.wrap(ROTATION, getattr(cache.placing, name)))
    cache.policy = cast(Policy, _Watched(cache.policy, _HOOKS, POLICY, watch))
    for name in _ENGINE:
        setattr(cache, name, watch.wrap(CACHE, getattr(cache, name)))


class _Watched:
    """An object some of whose methods count as a part."""

    def __init__(self, watched: object, methods: tuple[str, ...], part: str, watch: PartWatch) -> None:
        self._watched = watched
        for name in methods:
            setattr(self, name, watch.wrap(part, getattr(watched, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._watched, name)
