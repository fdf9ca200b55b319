"""A rollout: chunk after chunk of video from prompts, as a stream."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from tetherflow.backbone import Backbone, SamplerSettings
from tetherflow.cache.attention import PLAIN, Attention
from tetherflow.cache.engine import CacheEngine
from tetherflow.cache.events import Event
from tetherflow.cache.fusing import Fuse, step_by_step
from tetherflow.cache.interfaces import Policy, Positions, Unit
from tetherflow.cache.layout import Layout
from tetherflow.rollout.decoding import ChunkDecoder, Decoded
from tetherflow.rollout.graphs import GraphedTransformer
from tetherflow.rollout.history import LatentHistory
from tetherflow.rollout.prompts import PromptSchedule, PromptTrack
from tetherflow.rollout.sampler import Sampler
from tetherflow.rollout.schedule import Schedule


@attrs.frozen(eq=False)
class Chunk:
    """One chunk of a rollout.

    Attributes:
        index: its place in the rollout, from 0.
        latents: clean latents, float32 `[B, F, C, H, W]`.
        decoded: its video frames, which a GPU may still be computing; None if the session does not decode.
    """

    index: int
    latents: Tensor
    decoded: Decoded | None

    @property
    def frames(self) -> Tensor | None:
        """Video frames, uint8 RGB `[B, n, 3, height, width]`, on the device; None if there are none."""
        return None if self.decoded is None else self.decoded.on_device()


class Session:
    """Generates videos from a backbone under a cache policy.

    Memory and the time of a chunk do not grow with length.

    Args:
        backbone: the model.
        layout: the cache's regions.
        policy: decides what the cache keeps.
        positions: key positions.
        unit: what the cache keeps or drops as a whole.
        strict: whether plugins' results are checked at once; by default on the CPU only.
        chunk_frames: latent frames a chunk; the backbone's own by default.
        device: where it runs.
        dtype: type of the transformer's weights and of the cache.
        attention: computes self-attention over the cache.
        low_memory: whether to save memory at the cost of time: layers share one buffer of rotated keys,
            decoding waits its turn, and text encoder and autoencoder leave the device when idle.
        fuse: makes kernels of what the cache does to large tensors.
        graphs: whether to replay recorded passes (CUDA graphs) on a GPU, unless memory is to be saved.
        coarse: whether the keys and values that attention reads are rounded (`cache.rounding`).
    """

    def __init__(
        self,
        backbone: Backbone,
        layout: Layout,
        policy: Policy,
        *,
        positions: Positions = "block-relative",
        unit: Unit = "frame",
        strict: bool | None = None,
        chunk_frames: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        attention: Attention = PLAIN,
        low_memory: bool = False,
        fuse: Fuse = step_by_step,
        graphs: bool = True,
        coarse: bool = False,
    ) -> None:
        self.backbone = backbone
        self.layout = layout
        self.policy = policy
        self.positions: Positions = positions
        self.unit: Unit = unit
        self.device = torch.device(device)
        self.strict = self.device.type == "cpu" if strict is None else strict
        self.dtype = dtype
        self.attention = attention
        self.low_memory = low_memory
        self.fuse = fuse
        self.coarse = coarse
        self.graphs = graphs and self.device.type == "cuda" and not low_memory
        self.settings: SamplerSettings = backbone.sampler
        self.chunk_frames = chunk_frames or self.settings.chunk_frames
        layout.check_chunk(self.chunk_frames)
        policy.check_layout(layout)
        self.sampler = Sampler(
            backbone.transformer, Schedule.of(self.settings), self.settings.context_timestep, dtype
        )
        # One for all chunks: torch has 32 streams, and a later one might be busy with something else.
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.cache: CacheEngine | None = None
        self.history: LatentHistory | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the rollout's cache, side stores included, and of the latents kept to write it anew."""
        return sum(part.nbytes for part in (self.cache, self.history) if part is not None)

    def new_cache(self, batch: int) -> CacheEngine:
        """An empty cache for `batch` samples."""
        return CacheEngine(
            self.backbone.cache_shape,
            self.layout,
            self.policy,
            self.backbone.rotary,
            batch=batch,
            positions=self.positions,
            unit=self.unit,
            dtype=self.dtype,
            device=self.device,
            strict=self.strict,
            attention=self.attention,
            chunk_frames=self.chunk_frames,
            share_rotated=self.low_memory,
            fuse=self.fuse,
            coarse=self.coarse,
        )

    @torch.inference_mode()
    def stream(
        self,
        prompts: str | PromptSchedule | Sequence[str | PromptSchedule],
        *,
        latent_frames: int,
        seeds: int | Sequence[int] | None = None,
        first_latents: Tensor | None = None,
        decode: bool = True,
    ) -> Iterator[Chunk]:
        """Generate videos chunk by chunk.

        Args:
            prompts: B prompts, or schedules of prompts with one timetable; or one of either.
            latent_frames: length of the videos in latent frames, given ones included.
            seeds: B seeds, one a sample, or one alone. A sample's noise depends on its own seed alone, and is
                drawn on the CPU, so it is the same in any batch, on any device and any rank. 0, 1, … if
                omitted.
            first_latents: latents with which the videos begin, `[B, F, C, H, W]` (image-to-video, extension).
            decode: whether to decode the latents to video frames.

        Yields:
            The chunks in order, given latents first. The cache of the rollout that was begun last is
            `session.cache`; another that goes on meanwhile keeps its own.

        Raises:
            ValueError: The arguments do not go together, when the first chunk is asked for.
        """
        if isinstance(prompts, str | PromptSchedule):
            prompts = [prompts]
        if not prompts:
            raise ValueError("no prompt is given; give one a video")
        if not isinstance(latent_frames, int) or latent_frames < 1:
            raise ValueError(f"latent_frames is {latent_frames!r}; expected a whole number, 1 or more")
        if seeds is None:
            seeds = range(len(prompts))
        elif isinstance(seeds, int):
            seeds = [seeds]
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds; give one seed a prompt")
        if first_latents is not None:
            expected = (len(prompts), first_latents.shape[1], *self.backbone.latent_shape)
            if first_latents.shape != expected:
                raise ValueError(f"first_latents is {list(first_latents.shape)}; expected {list(expected)}")
        self.cache = self.history = None  # makes way for the text encoder
        track = PromptTrack(self.backbone, prompts)
        if self.low_memory:
            self.backbone.rest()
        cache = self.cache = self.new_cache(len(prompts))
        history = self.history = LatentHistory(self.layout.recent) if track.recaches else None
        decoder: ChunkDecoder | None = None
        if decode:
            decoder = ChunkDecoder(self.backbone.decoder(), self.device, beside=not self.low_memory)
        predict = GraphedTransformer(self.backbone.transformer) if self.graphs else None
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        index = done = 0
        given = 0 if first_latents is None else min(first_latents.shape[1], latent_frames)
        while done < latent_frames:
            if event := track.advance(done):
                self._switch(event, track.text, cache, history)
            if first_latents is not None and done < given:
                frames = min(self.chunk_frames, given - done)
                latents = first_latents[:, done : done + frames].to(self.device, torch.float32)
                self.sampler.prefill(cache, track.text, latents)
            else:
                frames = min(self.chunk_frames, latent_frames - done)
                noise = self.noise(generators, frames)
                latents = self.sampler.denoise(cache, track.text, noise, predict=predict)
            if history is not None:
                history.append(latents)
            yield Chunk(index, latents, None if decoder is None else decoder(latents))
            if self.low_memory:
                self.backbone.rest()
            index, done = index + 1, done + frames
        cache.checks.drain()

    def _switch(self, event: Event, text: Any, cache: CacheEngine, history: LatentHistory | None) -> None:
        """Do to the cache what a prompt switch asks for.

        KV recache (LongLive, arXiv 2509.22622, section 3.1) encodes the newest latents that are held in the
        recent region again under the new prompt, chunk by chunk, so that each attends to what is older, as
        when it was generated. The published code lets them all attend to one another, which its chunks never
        do otherwise; that is left out. The sink stays as it is.
        """
        cache.switch(event)
        if event.how != "recache" or history is None:
            return
        chunks = history.newest(cache.rewritable)
        newer = sum(latents.shape[1] for latents in chunks)
        for latents in chunks:
            newer -= latents.shape[1]
            self.sampler.rewrite(cache, text, latents, newer)

    def noise(self, generators: Sequence[torch.Generator], frames: int) -> NoiseSource:
        """What draws the noise of a chunk of so many latent frames, each sample's from its generator."""
        shape = (frames, *self.backbone.latent_shape)
        return NoiseSource(generators, shape, self.device, self._copies)


@attrs.frozen(eq=False)
class NoiseSource:
    """Draws a chunk's noise, pass after pass, each sample from its own generator.

    Attributes:
        generators: one a sample, on the CPU.
        shape: of one sample's noise.
        device: where the noise goes.
        copies: a GPU's stream that copies it there; None on a CPU.
    """

    generators: Sequence[torch.Generator]
    shape: tuple[int, ...]
    device: torch.device
    copies: torch.cuda.Stream | None = None

    def __call__(self, step: int) -> Tensor:
        """Standard normal noise for the next pass, float32 `[B, *shape]`; `step` only says which."""
        noise = torch.stack([torch.randn(self.shape, generator=generator) for generator in self.generators])
        if self.copies is None:
            return noise.to(self.device)
        # A copy from pageable memory would wait for the device, and one in its stream for the pass before.
        with torch.cuda.stream(self.copies):
            noise = noise.pin_memory().to(self.device, non_blocking=True)
        now = torch.cuda.current_stream(self.device)
        now.wait_stream(self.copies)
        noise.record_stream(now)
        return noise


def sample_seed(seed: int, prompt: str, sample: int) -> int:
    """Seed of one sample of one prompt: a hash of the recipe's seed, the prompt and the sample's number."""
    digest = hashlib.sha256(f"{seed}\0{sample}\0{prompt}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1
