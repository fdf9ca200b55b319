"""Rollouts whose prompt switches, beside plain ones and ones that were given the latents anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.cache.drive import assert_close, assert_same, contents
from tests.cache.plugins import MarginTopM, tethercache
from tests.rollout.small import LATENT, Small, small_backbone
from tetherflow import Layout, hookimpl
from tetherflow.cache.events import Event, How
from tetherflow.pipeline import Pipeline
from tetherflow.recipe import layout_of, load_recipe, pipeline_of, unit_of
from tetherflow.rollout.prompts import PromptSchedule, PromptSwitch
from tetherflow.rollout.session import Session
from tetherflow_policies.sink_window import SinkWindow

RED, BLUE, TWO = "a red circle", "a blue square bounces on a green field", "two shapes"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small_backbone(tmp_path_factory.mktemp("weights"))


class Listening(SinkWindow):
    """`SinkWindow` that notes the switches it is told of, and lets so many of the newest frames stay."""

    def __init__(self, keeps: int | None = None) -> None:
        super().__init__(name="listening")
        self.keeps = keeps
        self.heard: list[Event] = []

    @hookimpl
    def switch(self, event: Event) -> int | None:
        self.heard.append(event)
        return self.keeps


def session_for(
    backbone: Small, layout: Layout | None = None, evict: SinkWindow | None = None, **options: Any
) -> Session:
    policy = Pipeline(evict or SinkWindow(name="sink-window"))
    return Session(backbone, layout or Layout(3, 0, 6), policy, **options)


def schedule(*prompts: str | tuple[int, How, str]) -> PromptSchedule:
    """From a prompt and (frame, how, prompt) for each later one."""
    first, *later = prompts
    assert isinstance(first, str)
    switches = [
        PromptSwitch(frame, prompt, how) for frame, how, prompt in (x for x in later if isinstance(x, tuple))
    ]
    return PromptSchedule(first, tuple(switches))


def rollout(
    session: Session,
    prompts: Sequence[str | PromptSchedule],
    latent_frames: int,
    first_latents: Tensor | None = None,
    seeds: Sequence[int] = (0,),
) -> Tensor:
    """Latents of the whole rollout, `[B, F, C, H, W]`."""
    chunks = session.stream(
        prompts, latent_frames=latent_frames, seeds=seeds, first_latents=first_latents, decode=False
    )
    return torch.cat([chunk.latents for chunk in chunks], dim=1)


def cached(session: Session) -> list[Tensor]:
    assert session.cache is not None
    return contents(session.cache)


def origins(session: Session) -> list[int]:
    """Frames held in the first layer."""
    assert session.cache is not None
    held: list[int] = session.cache.origins()[0, 0].tolist()
    return held


# --- recache ------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    chunk=st.integers(1, 3),
    sinks=st.integers(0, 1),
    window=st.integers(2, 3),
    chunks=st.integers(1, 6),
    positions=st.sampled_from(["block-relative", "absolute"]),
    seed=st.integers(0, 99),
)
def test_recache_leaves_what_a_rollout_given_the_same_latents_would_have(
    backbone: Small, chunk: int, sinks: int, window: int, chunks: int, positions: Any, seed: int
) -> None:
    """The oracle never recaches: it takes in the sink under the old prompt, the window under the new one."""
    layout = Layout(sinks * chunk, 0, window * chunk)
    if positions == "absolute":
        chunks = min(chunks, sinks + window)  # else frames of the oracle's would stand elsewhere
    count = chunks * chunk
    latents = torch.randn(1, count, *LATENT, generator=torch.Generator().manual_seed(seed))
    options: dict[str, Any] = {"positions": positions, "chunk_frames": chunk}

    session = session_for(backbone, layout, **options)
    video = rollout(session, [schedule(RED, (count, "recache", BLUE))], count + chunk, latents)

    sink, newest = latents[:, : layout.sink], latents[:, layout.sink :][:, -layout.recent :]
    given_latents = torch.cat([sink, newest], dim=1)
    oracle = session_for(backbone, layout, **options)
    prompts = schedule(RED, (layout.sink, "keep", BLUE)) if sinks else BLUE
    expected = rollout(oracle, [prompts], given_latents.shape[1] + chunk, given_latents)
    torch.testing.assert_close(video[:, -chunk:], expected[:, -chunk:], atol=1e-4, rtol=1e-4)
    assert_close(cached(session), cached(oracle), 1e-4)


def test_recache_matters(backbone: Small) -> None:
    """Beside the prompt itself, which `keep` switches as well."""
    session = session_for(backbone)
    keep = rollout(session, [schedule(RED, (9, "keep", BLUE))], 12)
    recache = rollout(session, [schedule(RED, (9, "recache", BLUE))], 12)
    assert torch.equal(keep[:, :9], recache[:, :9])
    assert float((keep[:, 9:] - recache[:, 9:]).abs().mean()) > 1e-3


@pytest.mark.parametrize("frames", [3, 6, 7])
@pytest.mark.parametrize("positions", ["block-relative", "absolute"])
def test_recache_under_the_same_prompt_changes_nothing(backbone: Small, frames: int, positions: Any) -> None:
    """While nothing has left, within rounding: chunks see what they saw."""
    for policy in (tethercache(), Pipeline(SinkWindow(name="sink-window"))):
        layout = Layout(1, 2, 4) if policy.selector else Layout(1, 0, 6)
        plain, again = (Session(backbone, layout, policy, positions=positions) for _ in range(2))
        first = torch.randn(1, frames, *LATENT, generator=torch.Generator().manual_seed(frames))
        expected = rollout(plain, [RED], frames + 3, first)
        found = rollout(again, [schedule(RED, (frames, "recache", RED))], frames + 3, first)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert_close(cached(again), cached(plain), 1e-4)
        assert origins(again) == origins(plain)


def test_recache_under_the_same_prompt_keeps_the_first_layers_keys_whatever_has_left(backbone: Small) -> None:
    """They follow from the latents alone; with recall, those of memory are not touched at all."""
    plain, again = (Session(backbone, Layout(1, 3, 4), tethercache()) for _ in range(2))
    expected = rollout(plain, [RED], 21)
    found = rollout(again, [schedule(RED, (18, "recache", RED))], 18)
    torch.testing.assert_close(found, expected[:, :18])
    caches = []
    for session, prompts in ((plain, RED), (again, schedule(RED, (18, "recache", RED)))):
        rollout(session, [prompts], 21, expected)
        assert session.cache is not None
        caches.append([*session.cache.contents(0), session.cache.origins()[0]])
    assert_close(*caches, 1e-4)


def test_latents_are_kept_only_to_recache_and_no_more_than_that_takes(backbone: Small) -> None:
    session = session_for(backbone, Layout(3, 0, 5))
    rollout(session, [schedule(RED, (3, "flush", BLUE))], 9)
    assert session.history is None
    assert session.cache is not None
    assert session.nbytes == session.cache.nbytes
    sizes = set()
    prompts = [schedule(RED, (9, "recache", BLUE), (21, "recache", TWO))]
    for chunk in session.stream(prompts, latent_frames=36, seeds=[0], decode=False):
        assert session.history is not None
        if chunk.index > 1:
            sizes.add(session.history.nbytes)
            assert session.nbytes == session.cache.nbytes + session.history.nbytes
    assert sizes == {2 * chunk.latents.nbytes}  # 5 recent frames are of two chunks at most


def test_batch_equals_its_rows_alone(backbone: Small) -> None:
    select = MarginTopM()
    layout, seeds = Layout(1, 2, 4), [3, 1]
    prompts = [
        schedule(RED, (7, "recache", BLUE), (12, "flush", TWO)),
        schedule(TWO, (7, "recache", RED), (12, "flush", RED)),
    ]
    together = rollout(Session(backbone, layout, tethercache(select=select)), prompts, 21, seeds=seeds)
    assert select.smallest_margin > 1e-5  # else rounding might decide
    for row in range(2):
        session = Session(backbone, layout, tethercache())
        alone = rollout(session, prompts[row : row + 1], 21, seeds=seeds[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-4, rtol=1e-4)


# --- keep, flush and cut ------------------------------------------------------------------------------


def test_schedule_of_one_prompt_is_that_prompt(backbone: Small) -> None:
    plain, scheduled = session_for(backbone), session_for(backbone)
    assert torch.equal(rollout(plain, [RED], 18), rollout(scheduled, [PromptSchedule(RED)], 18))
    assert_same(cached(plain), cached(scheduled))


@pytest.mark.parametrize("how", ["keep", "recache", "flush", "cut"])
def test_until_the_switch_the_video_is_the_first_prompts(backbone: Small, how: How) -> None:
    session = session_for(backbone)
    plain = rollout(session, [RED], 15)
    video = rollout(session, [schedule(RED, (9, how, BLUE))], 15)
    assert torch.equal(video[:, :9], plain[:, :9])
    assert not torch.allclose(video[:, 9:12], plain[:, 9:12])


def test_keep_changes_nothing_but_the_prompt(backbone: Small) -> None:
    """To the same prompt, bit for bit; to another, what is held stays as it was."""
    plain, switched = session_for(backbone), session_for(backbone)
    expected = rollout(plain, [RED], 18)
    assert torch.equal(rollout(switched, [schedule(RED, (9, "keep", RED))], 18), expected)
    assert_same(cached(plain), cached(switched))
    rollout(switched, [RED], 9)
    before = cached(switched)
    rollout(switched, [schedule(RED, (9, "keep", BLUE))], 12)
    assert origins(switched) == [0, 1, 2, 6, 7, 8, 9, 10, 11]
    for index, after in enumerate(cached(switched)):
        if index % 3 < 2:  # keys and values, which are not rotated
            assert torch.equal(after[:, :3], before[index][:, :3])
            assert torch.equal(after[:, 3:6], before[index][:, 6:9])


@pytest.mark.parametrize("how", ["flush", "cut"])
@pytest.mark.parametrize(("keeps", "held"), [(None, [7, 8]), (0, []), (3, [6, 7, 8]), (99, [5, 6, 7, 8])])
def test_what_stays_is_what_the_policy_says(
    backbone: Small, how: How, keeps: int | None, held: list[int]
) -> None:
    """By default the newest two; the sink always. Recent has room for 7, three of them the new chunk's."""
    session = session_for(backbone, Layout(1, 0, 7), Listening(keeps))
    rollout(session, [schedule(RED, (9, how, BLUE))], 12)
    assert origins(session) == [0, *held, 9, 10, 11]


# --- recipes that show them ---------------------------------------------------------------------------


def shipped(backbone: Small, name: str, *changes: str) -> tuple[Session, PromptSchedule]:
    """A shipped recipe's cache and policy, and what it shows."""
    recipe = load_recipe(name, changes)
    low = recipe.runtime.memory == "low"
    options: dict[str, Any] = {"positions": recipe.cache.positions, "unit": unit_of(recipe)}
    session = Session(backbone, layout_of(recipe), pipeline_of(recipe), low_memory=low, **options)
    return session, PromptSchedule.of(recipe, recipe.rollout.prompts[0])


def test_infinity_rope_switch_flushes_and_then_cuts(backbone: Small) -> None:
    session, prompts = shipped(backbone, "infinity-rope-switch")
    assert prompts.timetable == ((24, "flush"), (48, "cut"))
    after = {}
    for chunk in session.stream([prompts], latent_frames=54, seeds=[0], decode=False):
        assert session.cache is not None
        store = session.cache.layers[0]
        keys, read = (store.take(buffer, store.order) for buffer in (store.keys, store.read_keys))
        at = [*range(3), *(range(45, 48) if chunk.index == 16 else range(3, 6))]
        expected = backbone.rotary.turn(keys, backbone.rotary.phases(torch.tensor(at)[: keys.shape[1]]))
        torch.testing.assert_close(read, expected, atol=1e-5, rtol=1e-5)
        after[chunk.index] = origins(session)
    assert after[7] == [0, 19, 20, 21, 22, 23]
    assert after[8] == [0, 22, 23, 24, 25, 26]
    assert after[9] == [0, 25, 26, 27, 28, 29]
    assert after[16] == [0, 46, 47, 48, 49, 50]


def test_longlive_switch_writes_the_window_anew_and_not_the_sink(backbone: Small) -> None:
    session, prompts = shipped(backbone, "longlive-switch")
    assert prompts.timetable == ((32, "recache"),)
    rollout(session, [prompts.prompt], 33)
    before = cached(session)
    assert origins(session) == [0, 1, 2, *range(24, 33)]
    rollout(session, [prompts], 36)
    assert origins(session) == [0, 1, 2, *range(27, 36)]
    values, old = cached(session)[1::3], before[1::3]
    for layer, (found, wrote) in enumerate(zip(values, old, strict=True)):
        assert torch.equal(found[:, :3], wrote[:, :3])
        # The first layer's values follow from the latents alone; the prompt speaks in those above it.
        assert torch.allclose(found[:, 3:9], wrote[:, 6:], atol=1e-5) == (layer == 0)


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("longlive-switch", ["cache.positions=block-relative"]),
        ("tethercache", []),
        ("forcing-kv", ["cache.unit={rows: 1}", "stages.select.static_heads=[[], [0]]"]),
    ],
)
def test_recache_in_little_memory_is_the_same(backbone: Small, recipe: str, changes: list[str]) -> None:
    """Bit for bit, where layers take turns with one buffer, and groups of heads read what they say."""
    plain, low = (shipped(backbone, recipe, *changes, f"runtime.memory={m}")[0] for m in ("normal", "low"))
    prompts = schedule(RED, (24, "recache", BLUE), (33, "flush", TWO), (36, "recache", RED))
    expected = rollout(plain, [prompts, prompts], 45, seeds=(0, 1))
    assert torch.equal(rollout(low, [prompts, prompts], 45, seeds=(0, 1)), expected)
    assert plain.cache is not None
    assert low.cache is not None
    assert low.cache.nbytes < plain.cache.nbytes
    assert torch.equal(low.cache.origins(), plain.cache.origins())


# --- when ---------------------------------------------------------------------------------------------


def test_a_switch_waits_for_the_next_chunk_and_is_told_once(backbone: Small) -> None:
    evict = Listening()
    prompts = schedule(RED, (4, "keep", BLUE), (9, "recache", RED), (10, "flush", TWO), (12, "cut", BLUE))
    rollout(session_for(backbone, evict=evict), [prompts], 18)
    assert evict.heard == [Event("keep", 6), Event("recache", 9), Event("cut", 12)]


def test_chunks_of_given_latents_switch_too(backbone: Small) -> None:
    evict = Listening()
    first = torch.randn(1, 7, *LATENT)
    prompts = schedule(RED, (2, "recache", BLUE), (6, "keep", RED), (8, "keep", TWO))
    rollout(session_for(backbone, evict=evict), [prompts], 13, first)
    assert evict.heard == [Event("recache", 3), Event("keep", 6), Event("keep", 10)]


def test_schedules_of_different_timetables_are_refused(backbone: Small) -> None:
    for other in (RED, schedule(RED, (6, "keep", BLUE)), schedule(RED, (9, "flush", BLUE))):
        with pytest.raises(ValueError, match="switch by 2 timetables, but share one cache"):
            rollout(session_for(backbone), [schedule(RED, (9, "keep", BLUE)), other], 12, seeds=[0, 1])


@pytest.mark.parametrize("frames", [(0,), (3, 3), (6, 3)])
def test_switches_come_after_the_beginning_and_in_order(frames: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="'how' must be in"):
        PromptSwitch(6, "another", "bogus")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="they are after frame 0, and ascend"):
        PromptSchedule(RED, tuple(PromptSwitch(frame, BLUE) for frame in frames))
