"""Other implementations, timed beside this one through a function that the user names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module

import attrs
import torch

from tetherflow.errors import EvaluationError
from tetherflow.rollout.session import Session


@attrs.frozen
class Workload:
    """What another implementation is asked to generate, so that its times can stand beside these.

    Attributes:
        device: where.
        dtype: type of weights and cache.
        chunks: how many chunks.
        chunk_frames: latent frames of a chunk.
        passes: transformer passes a chunk, the context pass included.
        budget: latent frames of the full cache.
        latent_shape: channels, rows and columns of a latent frame.
        layers: transformer blocks.
        heads: attention heads.
        head_dim: width of a head.
        tokens: tokens of a latent frame.
    """

    device: torch.device
    dtype: torch.dtype
    chunks: int
    chunk_frames: int
    passes: int
    budget: int
    latent_shape: tuple[int, int, int]
    layers: int
    heads: int
    head_dim: int
    tokens: int


Implementation = Callable[[Workload], Iterator[object]]
"""Loads an implementation, and returns an iterator each of whose steps generates the next chunk.

A step may return before the device is done; the clock waits for it. What a step returns is not looked at.
"""


def load_implementation(reference: str) -> Implementation:
    """The function that `module:function` names.

    Raises:
        EvaluationError: There is no such module or function.
    """
    module, colon, name = reference.partition(":")
    if not (module and colon and name):
        raise EvaluationError(f"--against {reference}: give a function to import, as MODULE:FUNCTION")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise EvaluationError(f"--against {reference}: {error}; is its folder on PYTHONPATH?") from error
    if not callable(found):
        raise EvaluationError(f"--against {reference}: {name} is {type(found).__name__}, not a function")
    implementation: Implementation = found
    return implementation


def workload_of(session: Session, chunks: int) -> Workload:
    """What a session generates, for others to generate too."""
    shape = session.backbone.cache_shape
    return Workload(
        device=session.device,
        dtype=session.dtype,
        chunks=chunks,
        chunk_frames=session.chunk_frames,
        passes=passes_of(session),
        budget=session.layout.budget,
        latent_shape=session.backbone.latent_shape,
        layers=shape.layers,
        heads=shape.heads,
        head_dim=shape.head_dim,
        tokens=shape.tokens,
    )


def passes_of(session: Session) -> int:
    """Transformer passes of a chunk: the denoising steps, and the context pass."""
    return len(session.settings.steps) + 1


def stream_of(name: str, implementation: Implementation, work: Workload) -> Iterator[object]:
    """The chunks of an implementation.

    Raises:
        EvaluationError: It ends before its time; raised when the missing chunk is asked for.
    """
    made = 0
    for chunk in implementation(work):
        yield chunk
        made += 1
    raise EvaluationError(f"{name} generated {made} chunks of the {work.chunks} that it was asked for")
