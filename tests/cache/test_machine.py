"""A stateful machine drives the engine beside the naive oracle: random regions, chunks, batches and policies.

Properties that it holds after every step (the method of the same name says each in full):

 1. occupancy_never_exceeds_the_budget            2. occupancy_equals_the_oracles
 3. frames_held_equal_the_oracles                 4. frames_held_are_unique_and_in_order
 5. sink_is_the_first_frames                      6. sink_never_changes_once_written
 7. recent_is_the_last_frames_in_order            8. memory_lies_between_sink_and_recent
 9. every_frame_is_held_or_was_dropped_once      10. dropped_frames_never_return
11. empty_slots_claim_no_frame                   12. keys_equal_the_oracles
13. values_equal_the_oracles                     14. read_keys_stand_at_their_positions
15. pooled_statistics_are_those_of_the_tokens    16. buffers_never_move_or_grow
17. reported_memory_is_the_memory_region

and while a chunk runs:

18. denoising_attention_is_dense_attention       19. context_attention_reads_the_decision
20. what_grab_keeps_scores_best                  21. newcomers_are_edited_as_tame_says
22. no_edit_touches_another_slot                 23. an_abandoned_chunk_leaves_no_trace
24. a_snapshot_brings_everything_back

`test_equivalences.py` holds what one engine shares with another.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar
from unittest import TestCase

import attrs
import hypothesis.strategies as st
import torch
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from tests.cache import oracle as naive
from tests.cache.drive import Pass, Sizes, attend
from tests.cache.oracle import Cell, Frame, Oracle, Rules
from tests.cache.plugins import (
    FEW_SALTS,
    DrawSelector,
    ScatterEvictor,
    WanderEvictor,
    draw,
    scattered,
    tethercache,
    wandering,
)
from tetherflow import Layout
from tetherflow.cache import CacheEngine, Positions
from tetherflow.cache.store import EMPTY
from tetherflow.pipeline import Pipeline
from tetherflow_policies.recall_window import RecallWindow
from tetherflow_policies.sink_window import SinkWindow
from tetherflow_policies.sliding_window import SlidingWindow
from tetherflow_policies.tame import Tame

NEAR = 1e-5
"""How far float32 may stray from the oracle's float64, for numbers of order 1."""


@attrs.frozen
class Case:
    """One random engine.

    Attributes:
        policy: which of `pipeline`'s.
        sizes: of the model.
        layout: the regions.
        positions: of keys.
        batch: samples.
        strict: whether checks are strict.
        precision: of the rotation.
        temperature, alpha, tau: options of GRAB and TAME.
        seed: of the tensors.
    """

    policy: str
    sizes: Sizes
    layout: Layout
    positions: Positions
    batch: int
    strict: bool
    precision: torch.dtype
    temperature: float
    alpha: float
    tau: float
    seed: int

    @property
    def recalls(self) -> bool:
        return self.policy in RECALLING

    def pipeline(self) -> Pipeline:
        """The policy, made of plugins."""
        tame = Tame(Tame.Options(tau=self.tau))
        match self.policy:
            case "sliding-window":
                return Pipeline(SlidingWindow())
            case "sink-window":
                return Pipeline(SinkWindow())
            case "scatter":
                return Pipeline(ScatterEvictor())
            case "wander":
                return Pipeline(WanderEvictor())
            case "tethercache":
                return tethercache(temperature=self.temperature, alpha=self.alpha, tau=self.tau)
            case "grab":
                return tethercache(temperature=self.temperature, alpha=self.alpha, tau=None)
            case "draw":
                return Pipeline(RecallWindow(), select=DrawSelector(), edit=[tame])
            case _:
                return Pipeline(ScatterEvictor(destination="memory"), select=DrawSelector(), edit=[tame])


DROPPING = ["sliding-window", "sink-window", "scatter", "wander"]
RECALLING = ["tethercache", "grab", "draw", "scatter-draw"]


@st.composite
def cases(draw: st.DrawFn, policy: str) -> Case:
    """Random engines of a policy, with regions that suit it."""
    recalls = policy in RECALLING
    sink = 0 if policy == "sliding-window" else draw(st.integers(0, 3))
    no_memory = policy in ("sliding-window", "sink-window")
    memory = 0 if no_memory else draw(st.integers(1 if recalls else 0, 4))
    sizes = Sizes(
        layers=draw(st.integers(1, 3)),
        heads=draw(st.integers(1, 2)),
        head_dim=draw(st.sampled_from([2, 6, 12])),
        grid=draw(st.sampled_from([(1, 2), (2, 1), (2, 3)])),
    )
    return Case(
        policy=policy,
        sizes=sizes,
        layout=Layout(sink, memory, draw(st.integers(1, 4))),
        positions="block-relative" if recalls else draw(st.sampled_from(["absolute", "block-relative"])),
        batch=draw(st.integers(1, 3)),
        strict=draw(st.booleans()),
        precision=draw(st.sampled_from([torch.float32, torch.float64])),
        temperature=draw(st.sampled_from([0.1, 0.5, 1.0])),
        alpha=draw(st.sampled_from([0.0, 0.35, 2.0])),
        tau=draw(st.sampled_from([0.0, 0.3, 0.6, 1.0])),
        seed=draw(st.integers(0, 10_000)),
    )


class CacheMachine(RuleBasedStateMachine):
    """Drives an engine and the oracle side by side, a chunk a step."""

    policy: ClassVar[str]
    engine: CacheEngine
    oracle: Oracle
    case: Case

    @initialize(data=st.data(), fill=st.sampled_from([True, True, False]))
    def start(self, data: st.DataObject, fill: bool) -> None:
        """Build both; most begin with a full cache, as that is where policies act."""
        case = self.case = data.draw(cases(self.policy))
        self.generator = torch.Generator().manual_seed(case.seed)
        self.engine = case.sizes.engine(
            case.layout,
            case.pipeline(),
            batch=case.batch,
            positions=case.positions,
            strict=case.strict,
            precision=case.precision,
        )
        self.oracle = Oracle(
            case.sizes.layers,
            case.batch,
            case.layout,
            case.positions,
            case.sizes.grid,
            self.rules_of_the_oracle(),
        )
        self.sunk: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.dropped: list[list[list[int]]] = [
            [[] for _ in range(case.batch)] for _ in range(case.sizes.layers)
        ]
        self.kept: list[Any] | None = None
        self.pointers = [tensor.data_ptr() for tensor in self.static_buffers()]
        self.bytes = sum(tensor.nbytes for tensor in self.static_buffers())
        while fill and self.engine.held < case.layout.budget:
            self.chunk(case.layout.recent, 0, False)

    # --- steps ----------------------------------------------------------------------------------------

    @rule(frames=st.integers(1, 4), passes=st.integers(0, 3), backwards=st.booleans())
    def chunk(self, frames: int, passes: int, backwards: bool) -> None:
        """A chunk of any size that fits, with any number of denoising passes, layers in either order."""
        frames = min(frames, self.case.layout.recent)
        layers = list(range(self.case.sizes.layers))
        order = layers[::-1] if backwards else layers
        self.begin(frames)
        for _ in range(passes):
            self.denoising_attention_is_dense_attention(frames, order)
        self.engine.commit()
        self.oracle.commit()
        tensors = self.random_pass(frames)
        for layer in order:
            self.context_attention_reads_the_decision(layer, tensors)
        self.engine.end()
        self.oracle.end()
        self.note_dropped()

    @rule()
    def keep(self) -> None:
        """Take a snapshot."""
        self.kept = self.everything()

    @precondition(lambda self: self.kept is not None)
    @rule()
    def a_snapshot_brings_everything_back(self) -> None:
        """Restoring a snapshot brings back every tensor bit for bit; later steps go on from there."""
        assert self.kept is not None
        self.bring_back(self.kept)

    @rule(frames=st.integers(1, 4), passes=st.integers(0, 2))
    def an_abandoned_chunk_leaves_no_trace(self, frames: int, passes: int) -> None:
        """A chunk that is begun and then restored away leaves no trace, although it evicted and wrote."""
        frames = min(frames, self.case.layout.recent)
        before = self.everything()
        self.begin(frames)
        for _ in range(passes):
            self.denoising_attention_is_dense_attention(frames, range(self.case.sizes.layers))
        self.bring_back(before)

    # --- what happens in a step -----------------------------------------------------------------------

    def begin(self, frames: int) -> None:
        self.engine.begin(frames)
        self.oracle.begin(frames)
        assert self.engine.held <= self.case.layout.budget

    def denoising_attention_is_dense_attention(self, frames: int, order: Any) -> None:
        """Each denoising pass attends to the oracle's frames and its own, its queries at the tail."""
        tensors = self.random_pass(frames)
        for layer, out in zip(sorted(order), attend(self.engine, tensors, order), strict=True):
            self.close(out, self.oracle.attend(layer, *tensors[layer]))

    def context_attention_reads_the_decision(self, layer: int, tensors: Pass) -> None:
        """The context pass already reads what it has just admitted, edited, and not what it dropped."""
        before = self.tensors_by_frame(layer)
        out = self.engine.attend(layer, *tensors[layer])
        expected = self.oracle.attend(layer, *tensors[layer])
        self.close(out, expected)
        self.no_edit_touches_another_slot(layer, before)

    def no_edit_touches_another_slot(
        self, layer: int, before: list[dict[int, tuple[Tensor, Tensor]]]
    ) -> None:
        """Only what was just admitted may change: all else that is still held is the same bit for bit."""
        after = self.tensors_by_frame(layer)
        for old, new in zip(before, after, strict=True):
            for frame in old.keys() & new.keys():
                assert torch.equal(old[frame][0], new[frame][0])
                assert torch.equal(old[frame][1], new[frame][1])

    def what_grab_keeps_scores_best(self, cell: Cell, candidates: list[Frame], query: Tensor) -> list[int]:
        """No candidate that the engine left out scores better, from the full logits, than one that it kept.

        The oracle then keeps what the engine kept, so that a near tie, which rounding decides, is no failure.
        """
        scores = naive.grab(candidates, query, self.case.temperature, self.case.alpha)
        held = set(self.held_frames(cell.layer, cell.row))
        kept = [i for i, frame in enumerate(candidates) if frame.origin in held]
        left = [i for i in range(len(candidates)) if i not in kept]
        assert len(kept) == cell.layout.memory
        assert min(scores[i] for i in kept) >= max(scores[i] for i in left) - NEAR
        return kept

    def newcomers_are_edited_as_tame_says(self, cell: Cell, frame: Frame, trusted: list[Frame]) -> Frame:
        """The engine's edit from pooled statistics is the formula over the tokens; τ = 0 is no edit at all.

        The oracle then takes the engine's tensors, so that rounding does not add up over a rollout.
        """
        slots = self.engine.layers[cell.layer].origins[cell.row].tolist()
        slot = slots.index(frame.origin)
        store = self.engine.layers[cell.layer]
        found = Frame(
            frame.origin, store.keys[cell.row, slot].double(), store.values[cell.row, slot].double()
        )
        expected = naive.tame(frame, trusted, self.case.tau)
        if not self.case.tau:
            assert torch.equal(found.key, frame.key)
            assert torch.equal(found.value, frame.value)
        for part in ("key", "value"):
            x, edited, wanted = getattr(frame, part), getattr(found, part), getattr(expected, part)
            # Where a frame hardly varies, its rounding is scaled up with it.
            pool = torch.cat([getattr(other, part) for other in trusted])
            scale = 1 + pool.std(dim=0, correction=0) / x.std(dim=0, correction=0).clamp_min(1e-6)
            assert bool(((edited - wanted).abs() <= NEAR * scale * (1 + x.abs().amax(dim=0))).all())
        return found

    def rules_of_the_oracle(self) -> Rules:
        """The case's policy in the oracle's terms."""
        layout = self.case.layout

        def scatter(cell: Cell, incoming: int, count: int) -> list[int]:
            salt = FEW_SALTS[cell.layer][cell.row]
            return scattered(salt, self.engine.chunk, layout, cell.origins, incoming, count)

        def wander(cell: Cell, incoming: int, count: int) -> list[int]:
            return list(wandering(1, self.engine.chunk, layout, len(cell.frames), incoming, count))

        def lot(cell: Cell, candidates: list[Frame], query: Tensor) -> list[int]:
            salt = FEW_SALTS[cell.layer][cell.row]
            return draw(salt, self.engine.chunk, [frame.origin for frame in candidates], layout.memory)

        edit = self.newcomers_are_edited_as_tame_says
        match self.case.policy:
            case "sliding-window" | "sink-window":
                return Rules(naive.evict_oldest)
            case "scatter":
                return Rules(scatter)
            case "wander":
                return Rules(wander)
            case "tethercache":
                return Rules(naive.evict_recent, self.what_grab_keeps_scores_best, edit)
            case "grab":
                return Rules(naive.evict_recent, self.what_grab_keeps_scores_best)
            case "draw":
                return Rules(naive.evict_recent, lot, edit)
            case _:
                return Rules(scatter, lot, edit)

    # --- properties -----------------------------------------------------------------------------------

    @invariant()
    def occupancy_never_exceeds_the_budget(self) -> None:
        """The engine holds at most as many frames as its regions have room for."""
        assert self.engine.held <= self.case.layout.budget

    @invariant()
    def occupancy_equals_the_oracles(self) -> None:
        """The engine holds as many frames as the oracle: no slot is wasted, and no frame leaves too early."""
        for _, _, cell in self.cells():
            assert self.engine.held == len(cell.frames) == min(self.oracle.written, self.case.layout.budget)

    @invariant()
    def frames_held_equal_the_oracles(self) -> None:
        """Every layer holds the very frames that the oracle holds, for each sample."""
        for layer, row, cell in self.cells():
            assert self.held_frames(layer, row) == cell.origins

    @invariant()
    def frames_held_are_unique_and_in_order(self) -> None:
        """In time order origins ascend strictly, so no frame is held twice."""
        if self.engine.held > 1:
            assert bool((self.engine.origins().diff(dim=-1) > 0).all())

    @invariant()
    def sink_is_the_first_frames(self) -> None:
        """The sink holds frames 0, 1, … in order."""
        sink = self.case.layout.sink_of(self.engine.held)
        expected = torch.arange(len(sink)).expand(self.case.sizes.layers, self.case.batch, -1)
        assert torch.equal(self.engine.origins()[:, :, : sink.stop], expected)

    @invariant()
    def sink_never_changes_once_written(self) -> None:
        """The sink's keys and values stay what they were when they were written, bit for bit."""
        count = len(self.case.layout.sink_of(self.engine.held))
        for layer in range(self.case.sizes.layers):
            keys, values = (x[:, :count] for x in self.engine.contents(layer))
            for frame in range(count):
                old = self.sunk.setdefault((layer, frame), (keys[:, frame], values[:, frame]))
                assert torch.equal(keys[:, frame], old[0])
                assert torch.equal(values[:, frame], old[1])

    @invariant()
    def recent_is_the_last_frames_in_order(self) -> None:
        """The recent region holds the last R frames, in order and without a gap."""
        recent = self.case.layout.recent_of(self.engine.held)
        last = torch.arange(self.oracle.written - len(recent), self.oracle.written)
        found = self.engine.origins()[:, :, recent.start :]
        assert torch.equal(found, last.expand_as(found))

    @invariant()
    def memory_lies_between_sink_and_recent(self) -> None:
        """Memory's frames are newer than the sink and older than recent."""
        memory = self.case.layout.memory_of(self.engine.held)
        found = self.engine.origins()[:, :, memory.start : memory.stop]
        assert bool((found >= memory.start).all())
        assert bool((found < self.oracle.written - len(self.case.layout.recent_of(self.engine.held))).all())

    @invariant()
    def every_frame_is_held_or_was_dropped_once(self) -> None:
        """Conservation: every frame ever written is held once or was dropped by name once, never both."""
        for layer, row, _ in self.cells():
            accounted = self.held_frames(layer, row) + self.dropped[layer][row]
            assert sorted(accounted) == list(range(self.engine.frames_written))

    @invariant()
    def dropped_frames_never_return(self) -> None:
        """What was dropped is what the oracle dropped, and none of it is held again."""
        for layer, row, cell in self.cells():
            assert not set(self.dropped[layer][row]) & set(self.held_frames(layer, row))
            assert sorted(self.dropped[layer][row]) == sorted(cell.dropped)

    @invariant()
    def empty_slots_claim_no_frame(self) -> None:
        """Between chunks, slots past those in use and slots of pending frames name no origin."""
        for store in self.engine.layers:
            assert bool((store.origins[:, self.engine.held :] == EMPTY).all())

    @invariant()
    def keys_equal_the_oracles(self) -> None:
        """Stored keys are the oracle's: bit for bit if unrotated, closely if rotated as they were written."""
        for layer, row, cell in self.cells():
            found = self.engine.contents(layer)[0][row]
            for frame, key in zip(cell.frames, found, strict=True):
                if self.case.positions == "block-relative":
                    assert torch.equal(key.double(), frame.key)
                else:
                    self.close(key, naive.rotate(frame.key, frame.origin, self.case.sizes.grid))

    @invariant()
    def values_equal_the_oracles(self) -> None:
        """Stored values are the oracle's, bit for bit."""
        for layer, row, cell in self.cells():
            for frame, value in zip(cell.frames, self.engine.contents(layer)[1][row], strict=True):
                assert torch.equal(value.double(), frame.value)

    @invariant()
    def read_keys_stand_at_their_positions(self) -> None:
        """Keys that attention reads are rotated to 0 … n−1 in time order, or to their frames' indices."""
        for layer, row, cell in self.cells():
            store = self.engine.layers[layer]
            found = store.take(store.read_keys, store.order)[row]
            for rank, (frame, key) in enumerate(zip(cell.frames, found, strict=True)):
                self.close(key, naive.rotate(frame.key, cell.position(rank, frame), self.case.sizes.grid))

    @invariant()
    def pooled_statistics_are_those_of_the_tokens(self) -> None:
        """The slots' means and variances, edited frames' included, are those of the tokens they stand for."""
        if not self.case.recalls or not self.engine.held:
            return
        for store in self.engine.layers:
            for found, buffer in zip(store.statistics(store.order), (store.keys, store.values), strict=True):
                tokens = store.take(buffer, store.order).double()
                for part, expected in (
                    (found.mean, tokens.mean(dim=2)),
                    (found.variance, tokens.var(dim=2, correction=0)),
                ):
                    torch.testing.assert_close(part.double(), expected, atol=NEAR, rtol=NEAR)

    @invariant()
    def buffers_never_move_or_grow(self) -> None:
        """Keys, values, rotated keys, statistics and origins stay in the memory where they began."""
        assert [tensor.data_ptr() for tensor in self.static_buffers()] == self.pointers
        assert self.engine.nbytes == self.bytes

    @invariant()
    def reported_memory_is_the_memory_region(self) -> None:
        """`memory_origins` tells the frames between sink and recent, and −1 before the cache is full."""
        found = self.engine.memory_origins()
        layout = self.case.layout
        assert found.shape == (self.case.sizes.layers, self.case.batch, layout.memory)
        for layer, row, cell in self.cells():
            full = len(cell.frames) == layout.budget
            memory = (
                cell.origins[layout.sink : layout.sink + layout.memory] if full else [EMPTY] * layout.memory
            )
            assert found[layer, row].tolist() == memory

    # --- helpers --------------------------------------------------------------------------------------

    def cells(self) -> list[tuple[int, int, Cell]]:
        return [(cell.layer, cell.row, cell) for cells in self.oracle.cells for cell in cells]

    def held_frames(self, layer: int, row: int) -> list[int]:
        store = self.engine.layers[layer]
        return [int(frame) for frame in store.unit_origins(store.order)[row]]

    def tensors_by_frame(self, layer: int) -> list[dict[int, tuple[Tensor, Tensor]]]:
        """For every sample, copies of key and value by frame, of what is held besides the current chunk."""
        store = self.engine.layers[layer]
        return [
            {
                frame: (store.keys[row, slot].clone(), store.values[row, slot].clone())
                for slot, frame in enumerate(store.origins[row, : self.engine.held].tolist())
                if frame < self.engine.frames_written
            }
            for row in range(self.case.batch)
        ]

    def note_dropped(self) -> None:
        for layer, dropped in enumerate(self.engine.dropped):
            for row, frames in enumerate(dropped.tolist()):
                self.dropped[layer][row] += frames

    def everything(self) -> list[Any]:
        """The state of engine, oracle and machine."""
        return [self.engine.snapshot(), self.oracle.snapshot(), copy.deepcopy(self.dropped), dict(self.sunk)]

    def bring_back(self, state: list[Any]) -> None:
        engine, oracle, dropped, sunk = state
        self.engine.restore(engine)
        self.oracle.restore(oracle)
        self.dropped, self.sunk = copy.deepcopy(dropped), dict(sunk)
        after = self.engine.snapshot()
        assert after["counters"] == engine["counters"]
        for found, wanted in zip(after["layers"], engine["layers"], strict=True):
            assert found.keys() == wanted.keys()
            for name in wanted:
                assert torch.equal(found[name], wanted[name])

    def static_buffers(self) -> list[Tensor]:
        found: list[Tensor] = []
        for store in self.engine.layers:
            found += [store.keys, store.values, store.origins]
            found += [buffer for buffer in (store.moments, store.rotated) if buffer is not None]
        return found

    def random_pass(self, frames: int) -> Pass:
        return self.case.sizes.random_pass(self.generator, self.case.batch, frames)

    def close(self, found: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(found.double(), expected.double(), atol=4 * NEAR, rtol=NEAR)


def machine(policy: str) -> type[TestCase]:
    """A test that drives engines of one policy."""
    test = type(f"{policy}-machine", (CacheMachine,), {"policy": policy}).TestCase
    test.settings = settings(max_examples=settings.default.max_examples // 4, stateful_step_count=12)
    return test


# One machine a policy: a single machine that drew the policy too would leave some of them out.
TestSlidingWindow = machine("sliding-window")
TestSinkWindow = machine("sink-window")
TestScatter = machine("scatter")
TestWander = machine("wander")
TestTetherCache = machine("tethercache")
TestGrab = machine("grab")
TestDraw = machine("draw")
TestScatterDraw = machine("scatter-draw")
