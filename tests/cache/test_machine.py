"""A state machine drives the engine beside the naive oracle: random regions, chunks, batches and policies.

It is the kit's `EngineMachine`, whose invariants hold for any policy. These hold besides, after every step,
as the methods of the same names say in full:

 1. occupancy_equals_the_oracles                  2. frames_held_equal_the_oracles
 3. dropped_frames_never_return                   4. empty_slots_claim_no_frame
 5. keys_equal_the_oracles                        6. values_equal_the_oracles
 7. read_keys_stand_at_their_positions            8. pooled_statistics_are_those_of_the_tokens
 9. buffers_never_move_or_grow                   10. reported_memory_is_the_memory_region

and while a chunk runs:

11. denoising_attention_is_dense_attention       12. context_attention_reads_the_decision
13. what_grab_keeps_scores_best                  14. newcomers_are_edited_as_tame_says
15. no_edit_touches_another_slot                 16. a_snapshot_brings_every_buffer_back

`test_equivalences.py` holds what one engine shares with another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar
from unittest import TestCase

import hypothesis.strategies as st
import torch
from hypothesis import settings
from hypothesis.stateful import invariant
from torch import Tensor

from tests.cache import oracle as naive
from tests.cache.cases import Case, cases
from tests.cache.oracle import Cell, Frame, Oracle, Rules
from tests.cache.plugins import FEW_SALTS, draw, scattered, wandering
from tetherflow.cache.book import EMPTY
from tetherflow.cache.events import FLUSH_KEEPS, How
from tetherflow.testing.machine import EngineMachine
from tetherflow.testing.script import Pass, attend

NEAR = 1e-5
"""How far float32 may stray from the oracle's float64, for numbers of order 1."""


class CacheMachine(EngineMachine):
    """Drives an engine and the oracle side by side, a chunk a step."""

    policy: ClassVar[str]
    oracle: Oracle
    case: Case

    def open(self, data: st.DataObject) -> None:
        """Build both."""
        case = self.case = data.draw(cases(self.policy))
        self.model = case.sizes
        self.engine = case.engine()
        self.generators = [torch.Generator().manual_seed(case.seed + row) for row in range(case.batch)]
        self.oracle = Oracle(
            case.sizes.layers,
            case.batch,
            case.layout,
            case.positions,
            case.sizes.grid,
            self.rules_of_the_oracle(),
        )
        self.pointers = [tensor.data_ptr() for tensor in self.static_buffers()]

    # --- what happens in a step -----------------------------------------------------------------------

    def begin(self, frames: int) -> None:
        super().begin(frames)
        self.oracle.begin(frames)

    def denoise(self, frames: int, order: Sequence[int]) -> None:
        self.denoising_attention_is_dense_attention(frames, order)

    def commit(self) -> None:
        super().commit()
        self.oracle.commit()

    def context(self, layer: int, tensors: Pass) -> None:
        self.context_attention_reads_the_decision(layer, tensors)

    def end(self) -> None:
        super().end()
        self.oracle.end()

    def switch_prompts(self, how: How) -> None:
        super().switch_prompts(how)
        if how in ("flush", "cut"):
            self.oracle.flush(FLUSH_KEEPS)

    def rewrite(self, newer: int, tensors: Pass) -> None:
        super().rewrite(newer, tensors)
        self.oracle.rewrite(newer, tensors)

    def everything(self) -> list[Any]:
        return [super().everything(), self.oracle.snapshot()]

    def bring_back(self, state: list[Any]) -> None:
        ours, oracle = state
        super().bring_back(ours)
        self.oracle.restore(oracle)
        self.a_snapshot_brings_every_buffer_back(ours[0])

    def a_snapshot_brings_every_buffer_back(self, wanted: dict[str, Any]) -> None:
        """Restoring brings back every tensor bit for bit, those too that nobody reads."""
        after = self.engine.snapshot()
        assert after["counters"] == wanted["counters"]
        for found, layer in zip(after["layers"], wanted["layers"], strict=True):
            assert found.keys() == layer.keys()
            for name in layer:
                assert torch.equal(found[name], layer[name])

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
        held = set(self.origins_of(cell))
        kept = [i for i, frame in enumerate(candidates) if frame.origin in held]
        left = [i for i in range(len(candidates)) if i not in kept]
        assert len(kept) == cell.layout.memory
        assert min(scores[i] for i in kept) >= max(scores[i] for i in left) - NEAR
        return kept

    def newcomers_are_edited_as_tame_says(self, cell: Cell, frame: Frame, trusted: list[Frame]) -> Frame:
        """The engine's edit from pooled statistics is the formula over the tokens; τ = 0 is no edit at all.

        The oracle then takes the engine's tensors, so that rounding does not add up over a rollout.
        """
        slots = self.engine.layers[cell.layer].book.origins[cell.row].tolist()
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
    def occupancy_equals_the_oracles(self) -> None:
        """The engine holds as many frames as the oracle: no slot is wasted, and no frame leaves too early."""
        for _, _, cell in self.cells():
            assert self.engine.held == len(cell.frames)
            assert len(cell.frames) + len(cell.dropped) == self.oracle.written

    @invariant()
    def frames_held_equal_the_oracles(self) -> None:
        """Every layer holds the very frames that the oracle holds, for each sample."""
        for _, _, cell in self.cells():
            assert self.origins_of(cell) == cell.origins

    @invariant()
    def dropped_frames_never_return(self) -> None:
        """What was dropped is what the oracle dropped, and none of it is held again."""
        for layer, row, cell in self.cells():
            assert not set(self.dropped[layer][row]) & set(self.origins_of(cell))
            assert sorted(self.dropped[layer][row]) == sorted(cell.dropped)

    @invariant()
    def empty_slots_claim_no_frame(self) -> None:
        """Between chunks, slots past those in use and slots of pending frames name no origin."""
        for store in self.engine.layers:
            assert bool((store.book.origins[:, self.engine.held :] == EMPTY).all())

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
        if any(self.named):
            return  # after a flush, keys are rotated to their new ranks as the next chunk begins
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
            kept = store.statistics(store.order)
            for index, buffer in enumerate((store.keys, store.values)):
                found = kept[:, :, index]
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

    def origins_of(self, cell: Cell) -> list[int]:
        """What the engine holds in a cell, in time order; in the middle of a chunk layers may differ."""
        store = self.engine.layers[cell.layer]
        return [int(frame) for frame in store.unit_origins(store.order)[cell.row]]

    def tensors_by_frame(self, layer: int) -> list[dict[int, tuple[Tensor, Tensor]]]:
        """For every sample, copies of key and value by frame, of what is held besides the current chunk."""
        store = self.engine.layers[layer]
        return [
            {
                frame: (store.keys[row, slot].clone(), store.values[row, slot].clone())
                for slot, frame in enumerate(store.book.origins[row, : self.engine.held].tolist())
                if frame < self.engine.frames_written
            }
            for row in range(self.case.batch)
        ]

    def static_buffers(self) -> list[Tensor]:
        found: list[Tensor] = []
        for store in self.engine.layers:
            found += [store.keys, store.values, store.book.origins]
            found += [buffer for buffer in (store.book.moments, store.rotated) if buffer is not None]
        return found

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
