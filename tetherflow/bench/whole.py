"""From the prompt to the file: first frame, frames a second with decoding and encoding, and peak memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

import attrs
import torch

from tetherflow.bench.stopwatch import synchronise
from tetherflow.bench.timing import STEADY
from tetherflow.recipe import Recipe
from tetherflow.rollout.background import Background
from tetherflow.rollout.batches import items_of
from tetherflow.rollout.decoding import ChunkDecoder, Decoded
from tetherflow.rollout.devices import peak_memory
from tetherflow.rollout.session import Chunk, Session
from tetherflow.rollout.writers import VideoWriter

Result = TypeVar("Result")

_CHUNKS: Final = STEADY + 16
_ALONE: Final = 3


@attrs.frozen
class Whole:
    """What a user waits for.

    Attributes:
        first_frame_seconds: from the prompt to the first chunk's frames in the host's memory. The model is
            loaded, and compiled if it is; the prompt's embedding is computed if the backbone can.
        frames_per_second: video frames a second into an MP4 file, over steady chunks.
        decode_seconds: decoding a chunk, with nothing beside it.
        copy_seconds: its frames' way to the host.
        encode_seconds: encoding them to H.264.
        transformer_bytes: peak memory of the GPU while latents are generated; None on the CPU.
        peak_bytes: the same with decoding beside it.
    """

    first_frame_seconds: float
    frames_per_second: float
    decode_seconds: float
    copy_seconds: float
    encode_seconds: float
    transformer_bytes: int | None
    peak_bytes: int | None


def measure_whole(session: Session, recipe: Recipe) -> Whole:
    """Generate a short video to a file, once as a user would, and its parts one by one.

    Args:
        session: which generates.
        recipe: whose first prompt and seed are used.
    """
    list(_stream(session, recipe, 1))  # loads the autoencoder, and lets libraries choose their kernels
    transformer_bytes: int | None = None
    if session.device.type == "cuda":
        latents_only = _stream(session, recipe, STEADY + 1, decode=False)
        _, transformer_bytes = _peak(session, lambda: list(latents_only))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (first, rate), peak_bytes = _peak(session, lambda: _to_file(session, recipe, path / "whole.mp4"))
        decode, copy, encode = _alone(session, recipe, path / "alone.mp4")
    return Whole(first, rate, decode, copy, encode, transformer_bytes, peak_bytes)


def _stream(session: Session, recipe: Recipe, chunks: int, *, decode: bool = True) -> Iterator[Chunk]:
    return session.stream(
        [items_of(recipe)[0].schedule],
        latent_frames=chunks * session.chunk_frames,
        seeds=[recipe.rollout.seed],
        decode=decode,
    )


def _to_file(session: Session, recipe: Recipe, path: Path) -> tuple[float, float]:
    """Seconds to the first chunk's frames, and steady frames a second, both as they arrive at the writer."""
    arrived: list[float] = []
    written: list[tuple[float, int]] = []
    with VideoWriter(path, fps=session.backbone.fps) as writer:

        def write(decoded: Decoded) -> None:
            frames = decoded.on_host()[0]
            arrived.append(time.perf_counter())
            writer.append(frames)
            written.append((time.perf_counter(), len(frames)))

        background = Background(write)
        started = time.perf_counter()
        for chunk in _stream(session, recipe, _CHUNKS):
            if chunk.decoded is not None:
                background.put(chunk.decoded)
        if (failure := background.finish()) is not None:
            raise failure
    seconds = written[-1][0] - written[STEADY][0]
    return arrived[0] - started, sum(frames for _, frames in written[STEADY + 1 :]) / seconds


def _peak(session: Session, work: Callable[[], Result]) -> tuple[Result, int | None]:
    """What work returns, and the most memory of the GPU that is held meanwhile."""
    session.cache = None  # that of the rollout before would count
    if session.device.type != "cuda":
        return work(), None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(session.device)
    result = work()
    synchronise(session.device)
    return result, peak_memory(session.device)


def _alone(session: Session, recipe: Recipe, path: Path) -> tuple[float, float, float]:
    """Seconds of a chunk's decoding, copying and encoding, one after the other."""
    chunks = list(_stream(session, recipe, 1 + _ALONE, decode=False))
    decoder = ChunkDecoder(session.backbone.decoder(), session.device, beside=False)
    seconds = torch.zeros(3, dtype=torch.float64)
    with VideoWriter(path, fps=session.backbone.fps) as writer, torch.inference_mode():
        writer.append(decoder(chunks[0].latents).on_host()[0])
        for chunk in chunks[1:]:
            synchronise(session.device)
            marks = [time.perf_counter()]
            decoded = decoder(chunk.latents)
            synchronise(session.device)
            marks.append(time.perf_counter())
            frames = decoded.on_host()
            marks.append(time.perf_counter())
            writer.append(frames[0])
            marks.append(time.perf_counter())
            seconds += torch.tensor(marks, dtype=torch.float64).diff()
    decode, copy, encode = (seconds / _ALONE).tolist()
    return decode, copy, encode
