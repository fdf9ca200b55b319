"""A session: rollouts of any length, from prompts and seeds."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cache.drive import assert_close, assert_same, contents
from tests.cache.plugins import MarginTopM, tethercache
from tests.rollout.rollouts import LAYOUT, PROMPTS, latents_of, rollout, session_for
from tests.rollout.small import LATENT, Small, small_backbone
from tetherflow import Candidates, Scorer, hookimpl
from tetherflow.errors import LayoutError, StageError
from tetherflow.pipeline import Pipeline
from tetherflow.rollout.session import NoiseSource, Session, sample_seed
from tetherflow_policies.sink_window import SinkWindow


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small_backbone(tmp_path_factory.mktemp("weights"))


def test_chunks_come_in_order_and_add_up(backbone: Small) -> None:
    chunks = rollout(session_for(backbone))
    assert [chunk.index for chunk in chunks] == list(range(6))
    assert all(chunk.latents.shape == (1, 3, *LATENT) for chunk in chunks)
    assert all(chunk.frames is None for chunk in chunks)
    latents = latents_of(chunks)
    assert latents.dtype == torch.float32
    assert bool(latents.isfinite().all())
    assert 0.1 < float(latents.std()) < 10


def test_two_runs_are_equal_bit_for_bit(backbone: Small) -> None:
    session = session_for(backbone)
    first, again = rollout(session), rollout(session)
    other = rollout(session_for(backbone))
    assert torch.equal(latents_of(first), latents_of(again))
    assert torch.equal(latents_of(first), latents_of(other))


def test_two_rollouts_of_a_session_keep_apart(backbone: Small) -> None:
    """Begun one after the other and continued in turns, each is what it is alone."""
    session = session_for(backbone)
    streams = [session.stream(prompt, latent_frames=12, seeds=[0], decode=False) for prompt in PROMPTS[:2]]
    found = [list(chunks) for chunks in zip(*zip(*streams, strict=True), strict=True)]
    for chunks, prompt in zip(found, PROMPTS, strict=False):
        alone = rollout(session_for(backbone), 12, prompts=[prompt])
        assert torch.equal(torch.cat([chunk.latents for chunk in chunks], dim=1), latents_of(alone))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "no prompt is given"),
        ({"latent_frames": 0}, "latent_frames is 0; expected a whole number, 1 or more"),
        ({"latent_frames": 2.5}, r"latent_frames is 2\.5; expected a whole number"),
    ],
)
def test_arguments_that_make_no_video(backbone: Small, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(session_for(backbone).stream(**({"prompts": PROMPTS[0], "latent_frames": 6} | arguments)))


def test_a_single_seed_needs_no_list(backbone: Small) -> None:
    session = session_for(backbone)
    one, listed = (
        next(session.stream(PROMPTS[0], latent_frames=3, seeds=seeds, decode=False)) for seeds in (7, [7])
    )
    assert torch.equal(one.latents, listed.latents)


def test_one_prompt_and_no_seed_are_enough(backbone: Small) -> None:
    session = session_for(backbone)
    found = torch.cat([chunk.latents for chunk in session.stream(PROMPTS[0], latent_frames=6)], dim=1)
    assert torch.equal(found, latents_of(rollout(session, 6, prompts=PROMPTS[:1], seeds=[0])))


def test_longer_video_begins_with_the_shorter_one(backbone: Small) -> None:
    """Length decides nothing but where it ends."""
    short, long = rollout(session_for(backbone), 12), rollout(session_for(backbone), 21)
    assert torch.equal(latents_of(short), latents_of(long)[:, :12])


def test_seed_and_prompt_matter(backbone: Small) -> None:
    session = session_for(backbone)
    base = latents_of(rollout(session, 6))
    assert not torch.allclose(base, latents_of(rollout(session, 6, seeds=[1])))
    assert not torch.allclose(base, latents_of(rollout(session, 6, prompts=PROMPTS[1:2])))


def test_batch_equals_its_rows_alone(backbone: Small) -> None:
    """Recall included: every sample decides for itself."""
    select = MarginTopM()
    together = session_for(backbone, tethercache(select=select))
    seeds = [3, 1, 2]
    batch = latents_of(rollout(together, prompts=PROMPTS, seeds=seeds))
    assert select.smallest_margin > 1e-5  # else rounding might decide
    assert together.cache is not None
    for row in range(3):
        one = session_for(backbone)
        alone = latents_of(rollout(one, prompts=PROMPTS[row : row + 1], seeds=seeds[row : row + 1]))
        assert one.cache is not None
        torch.testing.assert_close(batch[row : row + 1], alone, atol=1e-4, rtol=1e-4)
        assert torch.equal(together.cache.origins()[:, row : row + 1], one.cache.origins())


def test_noise_belongs_to_the_sample_and_not_to_its_batch() -> None:
    """The same seed draws the same noise in any row of any batch."""

    def noise(*seeds: int) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        source = NoiseSource(generators, (2, *LATENT), torch.device("cpu"))
        return torch.stack([source(step) for step in range(4)], dim=1)

    together = noise(5, 6, 7)
    assert together.shape == (3, 4, 2, *LATENT)
    assert torch.equal(together[1:2], noise(6))
    assert torch.equal(noise(7, 5), together[[2, 0]])
    assert abs(float(together.mean())) < 0.1
    assert abs(float(together.std()) - 1) < 0.1


@pytest.mark.parametrize("chunk_frames", [1, 2, 4])
def test_any_chunk_size(backbone: Small, chunk_frames: int) -> None:
    chunks = rollout(session_for(backbone, chunk_frames=chunk_frames), 12)
    assert [chunk.latents.shape[1] for chunk in chunks] == [chunk_frames] * (12 // chunk_frames)


def test_last_chunk_may_be_shorter(backbone: Small) -> None:
    assert [chunk.latents.shape[1] for chunk in rollout(session_for(backbone), 8)] == [3, 3, 2]
    assert [chunk.latents.shape[1] for chunk in rollout(session_for(backbone), 2)] == [2]


def test_chunk_larger_than_recent_is_refused(backbone: Small) -> None:
    with pytest.raises(LayoutError, match="a chunk of 5 frames does not fit into a recent region of 4"):
        session_for(backbone, chunk_frames=5)


def test_regions_that_do_not_suit_the_policy_are_refused_at_once(backbone: Small) -> None:
    with pytest.raises(LayoutError, match="'sink-window' keeps no memory"):
        Session(backbone, LAYOUT, Pipeline(SinkWindow(name="sink-window")))


def test_seeds_must_match_prompts(backbone: Small) -> None:
    with pytest.raises(ValueError, match="2 prompts but 1 seeds; give one seed a prompt"):
        rollout(session_for(backbone), prompts=PROMPTS[:2], seeds=[0])


# --- long rollouts ------------------------------------------------------------------------------------


def live_tensors() -> int:
    gc.collect()
    return sum(1 for item in gc.get_objects() if issubclass(type(item), torch.Tensor))


@pytest.mark.parametrize("strict", [True, False])
def test_nothing_grows_with_length(backbone: Small, strict: bool) -> None:
    """Neither the cache's bytes nor the number of tensors alive."""
    session = session_for(backbone, strict=strict)
    sizes, counts = [], []
    for chunk in session.stream(PROMPTS[:1], latent_frames=90, seeds=[0], decode=False):
        if chunk.index >= 4 and chunk.index % 5 == 0:
            assert session.cache is not None
            sizes.append(session.cache.nbytes)
            counts.append(live_tensors())
    assert len(sizes) >= 4
    assert len(set(sizes)) == 1
    assert max(counts) == min(counts)


def test_four_minutes_of_video_stream_through_static_buffers(backbone: Small) -> None:
    """960 latent frames, as a real model has in 240 s: every frame comes out, no buffer moves or grows."""
    session = session_for(backbone)
    frames, pointers = 0, set()
    for chunk in session.stream(["a red circle"], latent_frames=960, seeds=[0]):
        assert chunk.frames is not None
        assert session.cache is not None
        frames += chunk.frames.shape[1]
        pointers.add(tuple(layer.keys.data_ptr() for layer in session.cache.layers))
        pointers.add(tuple(layer.values.data_ptr() for layer in session.cache.layers))
    assert frames == 1 + 4 * 959
    assert len(pointers) == 2
    assert bool(chunk.latents.isfinite().all())


def test_cache_is_fresh_in_every_rollout(backbone: Small) -> None:
    session = session_for(backbone)
    rollout(session, 12)
    first = session.cache
    rollout(session, 3)
    assert session.cache is not first
    assert session.cache is not None
    assert session.cache.frames_written == 3


def test_stream_yields_before_the_rollout_ends(backbone: Small) -> None:
    session = session_for(backbone)
    stream = session.stream(PROMPTS[:1], latent_frames=10**9, seeds=[0], decode=False)
    assert [next(stream).index for _ in range(3)] == [0, 1, 2]
    assert session.cache is not None
    assert session.cache.frames_written == 9


# --- decoding -----------------------------------------------------------------------------------------


def test_frames_are_decoded_as_chunks_come(backbone: Small) -> None:
    chunks = list(session_for(backbone).stream(PROMPTS[:2], latent_frames=7, seeds=[0, 1]))
    frames = [chunk.frames for chunk in chunks if chunk.frames is not None]
    assert [tuple(part.shape) for part in frames] == [(2, 9, 3, 4, 4), (2, 12, 3, 4, 4), (2, 4, 3, 4, 4)]
    assert sum(part.shape[1] for part in frames) == 1 + 4 * (7 - 1)
    assert all(part.dtype == torch.uint8 for part in frames)


def test_every_rollout_has_a_decoder_of_its_own(backbone: Small) -> None:
    session = session_for(backbone)
    streams = [session.stream(PROMPTS[:1], latent_frames=3, seeds=[0]) for _ in range(2)]
    for chunks in map(list, streams):
        assert chunks[0].frames is not None
        assert chunks[0].frames.shape[1] == 9


# --- checks -------------------------------------------------------------------------------------------


class LateNan(Scorer):
    """Not finite in one chunk."""

    def __init__(self, chunk: int) -> None:
        super().__init__(name="late-nan")
        self.chunk = chunk

    @hookimpl
    def score(self, candidates: Candidates) -> Tensor:
        return torch.full(candidates.origins.shape, float("nan") if candidates.chunk == self.chunk else 0.0)


@pytest.mark.parametrize(("strict", "chunks"), [(True, 4), (False, 5)])
def test_faulty_plugin_stops_the_rollout(backbone: Small, strict: bool, chunks: int) -> None:
    """Strict checks stop before the faulty chunk, deferred ones before the next."""
    base = tethercache()
    policy = Pipeline(base.evictor, [LateNan(4)], base.selector)
    session = session_for(backbone, policy, strict=strict)
    stream = session.stream(PROMPTS[:1], latent_frames=30, seeds=[0], decode=False)
    assert [next(stream).index for _ in range(chunks)] == list(range(chunks))
    with pytest.raises(StageError, match=r"plugin 'late-nan' .*chunk 4.*not finite"):
        next(stream)


def test_fault_in_the_last_chunk_is_found_at_the_end(backbone: Small) -> None:
    base = tethercache()
    session = session_for(backbone, Pipeline(base.evictor, [LateNan(5)], base.selector), strict=False)
    with pytest.raises(StageError, match="chunk 5"):
        rollout(session, 18)


def test_checks_are_strict_on_the_cpu_unless_told_otherwise(backbone: Small) -> None:
    assert session_for(backbone).strict
    assert not session_for(backbone, strict=False).strict


# --- seeds --------------------------------------------------------------------------------------------


def test_sample_seeds_are_stable_and_apart() -> None:
    seeds = {sample_seed(seed, prompt, sample) for seed in (0, 1) for prompt in PROMPTS for sample in (0, 1)}
    assert len(seeds) == 12
    assert sample_seed(0, "a red circle", 0) == sample_seed(0, "a red circle", 0)
    assert all(0 <= seed < 2**63 for seed in seeds)
    for seed in seeds:
        torch.Generator().manual_seed(seed)


def test_any_prompt_has_a_seed() -> None:
    for prompt in ("", "\n/\0", "\ud800", "x" * 10_000):
        torch.Generator().manual_seed(sample_seed(0, prompt, 0))


def test_seed_does_not_mix_up_its_parts() -> None:
    assert sample_seed(1, "x", 23) != sample_seed(12, "x", 3)
    assert sample_seed(0, "1\0x", 2) != sample_seed(0, "x", 2)


# --- numerics -----------------------------------------------------------------------------------------


def test_fast_and_parity_agree(tmp_path: Path) -> None:
    videos = []
    for parity in (True, False):
        session = session_for(small_backbone(tmp_path, parity=parity))
        videos.append(latents_of(rollout(session)))
    assert_close(videos[:1], videos[1:], 1e-3)


def test_bfloat16_rollout_stays_finite(tmp_path: Path) -> None:
    session = session_for(small_backbone(tmp_path, dtype=torch.bfloat16), dtype=torch.bfloat16)
    latents = latents_of(rollout(session))
    assert latents.dtype == torch.float32
    assert bool(latents.isfinite().all())


def test_cache_can_be_restored_between_chunks(backbone: Small) -> None:
    """By the caller, who is outside the inference mode that the stream runs in."""
    session = session_for(backbone)
    stream = session.stream(PROMPTS[:1], latent_frames=30, seeds=[0], decode=False)
    for _ in range(3):
        next(stream)
    assert session.cache is not None
    snapshot, before = session.cache.snapshot(), contents(session.cache)
    next(stream)
    session.cache.restore(snapshot)
    assert_same(contents(session.cache), before)
    assert next(stream).latents.shape == (1, 3, *LATENT)
    assert session.cache.frames_written == 12
