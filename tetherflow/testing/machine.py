"""A state machine that drives an engine at random and holds it to its invariants, whatever the policy.

It sees the engine's public interface alone. After every step hold, as the methods of the same names say:

occupancy_never_exceeds_the_budget            the_budget_is_the_memory_it_takes
frames_held_are_unique_and_in_order           sink_is_the_first_frames
sink_never_changes_once_written               recent_is_the_last_frames_in_order
memory_lies_between_sink_and_recent           every_frame_is_held_or_was_dropped_once
stored_tensors_are_finite

and in the steps themselves: only_newcomers_are_edited, a_switch_lets_go_of_the_oldest,
what_stays_at_a_switch_is_untouched, a_snapshot_brings_everything_back, an_abandoned_chunk_leaves_no_trace.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, get_args

import hypothesis.strategies as st
import torch
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from tetherflow.cache import CacheEngine, Event, Layout
from tetherflow.cache.events import How
from tetherflow.errors import ConformanceError
from tetherflow.testing.script import Model, Pass, attend
from tetherflow.testing.watch import same

Units = dict[tuple[int, int, int], tuple[Tensor, Tensor]]
"""Key and value of every unit held, by layer, sample and origin."""


class EngineMachine(RuleBasedStateMachine):
    """Drives an engine through chunks of any size, prompt switches, snapshots, and chunks that are given up.

    A subclass opens the engine; it may also do more in each step, beside the engine.
    """

    engine: CacheEngine
    model: Model
    generators: list[torch.Generator]

    def open(self, data: st.DataObject) -> None:
        """Set `engine`, `model` and `generators`, one a sample."""
        raise NotImplementedError

    def chunk_of(self, frames: int) -> int:
        """The chunk size that stands for a number from 1 to 4: as many frames as fit."""
        return min(frames, self.layout.recent // self.layout.parts)

    @property
    def layout(self) -> Layout:
        """The engine's regions."""
        return self.engine.layout

    @initialize(data=st.data(), fill=st.sampled_from([True, True, False]))
    def start(self, data: st.DataObject, fill: bool) -> None:
        """Open the engine; most begin with a full cache, as that is where policies act."""
        self.open(data)
        self.bytes = self.engine.nbytes
        self.sunk: Units = {}
        layers, batch = self.model.layers, self.engine.batch
        self.dropped: list[list[list[int]]] = [[[] for _ in range(batch)] for _ in range(layers)]
        self.named = [0] * layers  # of the engine's newest account of what it dropped, how many are in ours
        self.kept: list[Any] | None = None
        largest = self.layout.recent // self.layout.parts
        for _ in range(-(-self.layout.budget // self.layout.recent) if fill else 0):
            self.chunk(largest, 0, False)

    # --- steps ----------------------------------------------------------------------------------------

    @rule(frames=st.integers(1, 4), passes=st.integers(0, 3), backwards=st.booleans())
    def chunk(self, frames: int, passes: int, backwards: bool) -> None:
        """A chunk of any size that fits, with any number of denoising passes, layers in either order."""
        frames = self.chunk_of(frames)
        layers = list(range(self.model.layers))
        order = layers[::-1] if backwards else layers
        self.begin(frames)
        written = self.engine.frames_written * self.layout.parts
        stay = {where: unit for where, unit in self.units().items() if where[2] < written}
        for _ in range(passes):
            self.denoise(frames, order)
        self.commit()
        tensors = self.random_pass(frames)
        for layer in order:
            self.context(layer, tensors)
        self.end()
        self.only_newcomers_are_edited(stay)

    @rule(how=st.sampled_from(get_args(How)))
    def switch(self, how: How) -> None:
        """A prompt switch; it is the next chunk's, but a snapshot or another switch may come between."""
        before = self.units()
        self.switch_prompts(how)
        self.note_dropped()
        self.a_switch_lets_go_of_the_oldest(before)
        if how == "recache":
            for newer in reversed(range(self.engine.rewritable)):
                self.rewrite(newer, self.random_pass(1))
            anew = (self.engine.frames_written - self.engine.rewritable) * self.layout.parts
            before = {where: unit for where, unit in before.items() if where[2] < anew}
        self.what_stays_at_a_switch_is_untouched(before)

    @rule()
    def keep(self) -> None:
        """Take a snapshot."""
        self.kept = self.everything()

    @precondition(lambda self: self.kept is not None)
    @rule()
    def a_snapshot_brings_everything_back(self) -> None:
        """Restoring a snapshot brings back every frame bit for bit; later steps go on from there."""
        if self.kept is not None:  # the precondition says so; this is for the type checker
            self.bring_back(self.kept)

    @rule(frames=st.integers(1, 4), passes=st.integers(0, 2))
    def an_abandoned_chunk_leaves_no_trace(self, frames: int, passes: int) -> None:
        """A chunk that is begun and then restored away leaves no trace, although it evicted and wrote."""
        frames = self.chunk_of(frames)
        before = self.everything()
        self.begin(frames)
        for _ in range(passes):
            self.denoise(frames, range(self.model.layers))
        self.bring_back(before)

    # --- what happens in a step -----------------------------------------------------------------------

    def begin(self, frames: int) -> None:
        """Begin a chunk."""
        self.engine.begin(frames)
        self.occupancy_never_exceeds_the_budget()

    def denoise(self, frames: int, order: Sequence[int]) -> None:
        """One denoising pass."""
        attend(self.engine, self.random_pass(frames), order)

    def commit(self) -> None:
        """Announce the context pass."""
        self.engine.commit()

    def context(self, layer: int, tensors: Pass) -> None:
        """One layer's part of the context pass."""
        self.engine.attend(layer, *tensors[layer])

    def end(self) -> None:
        """End the chunk, and note what it dropped."""
        self.engine.end()
        self.engine.checks.drain()
        self.note_dropped()
        self.named = [0] * self.model.layers

    def switch_prompts(self, how: How) -> None:
        """Tell the engine of a prompt switch."""
        self.engine.switch(Event(how, self.engine.frames_written))

    def rewrite(self, newer: int, tensors: Pass) -> None:
        """Write one recent frame anew, `newer` before the newest."""
        self.engine.rewrite(1, newer)
        attend(self.engine, tensors)
        self.engine.end()

    def note_dropped(self) -> None:
        """Take over what the engine has dropped since we last did: since the last chunk's end, if by name."""
        for layer, dropped in enumerate(self.engine.dropped):
            for row, frames in enumerate(dropped.tolist()):
                self.dropped[layer][row] += frames[self.named[layer] :]
            self.named[layer] = dropped.shape[1]

    def everything(self) -> list[Any]:
        """The state of engine and machine."""
        ours = copy.deepcopy((self.dropped, self.named))
        return [self.engine.snapshot(), self.units(), *ours, dict(self.sunk)]

    def bring_back(self, state: list[Any]) -> None:
        """Restore what `everything` returned."""
        snapshot, units, dropped, named, sunk = state
        self.engine.restore(snapshot)
        self.dropped, self.named, self.sunk = copy.deepcopy(dropped), list(named), dict(sunk)
        found = self.units()
        self.hold(found.keys() == units.keys(), "a restored snapshot holds other frames than it was taken of")
        for where, tensors in units.items():
            intact = all(same(a, b) for a, b in zip(found[where], tensors, strict=True))
            self.hold(intact, f"a restored snapshot changed {_named(where)}")

    def only_newcomers_are_edited(self, stay: Units) -> None:
        """What stays is the same, except the bank, blended memory, and what the policy revises."""
        uses, regions = self.engine.policy.uses, self.engine.regions
        free = {rank for rank in regions.bank if uses.merge} | {rank for rank in regions.memory if uses.blend}
        ranks = {
            (layer, row, origin): rank
            for layer, row, held in self.held_frames()
            for rank, origin in enumerate(held)
        }
        after = {where: unit for where, unit in self.units().items() if ranks[where] not in free}
        for where in sorted(stay.keys() & after.keys() if not uses.revise else ()):
            intact = all(same(a, b) for a, b in zip(stay[where], after[where], strict=True))
            self.hold(intact, f"{_named(where)} changed, although it was not just admitted to memory")

    def a_switch_lets_go_of_the_oldest(self, before: Units) -> None:
        """What is held is what was, without some of the oldest units past sink and bank."""
        standing = self.layout.standing
        for layer, row, held in self.held_frames():
            was = [origin for *cell, origin in before if cell == [layer, row]]
            left = was[:standing] + was[standing + len(was) - len(held) :]
            self.hold(
                held == left, f"layer {layer} holds {held} of {was} for sample {row} after a prompt switch"
            )

    def what_stays_at_a_switch_is_untouched(self, before: Units) -> None:
        """Nothing that was there before a switch, and still is, has changed."""
        after = self.units()
        for where in before.keys() & after.keys():
            intact = all(same(a, b) for a, b in zip(before[where], after[where], strict=True))
            self.hold(intact, f"{_named(where)} changed at a prompt switch")

    # --- invariants -----------------------------------------------------------------------------------

    @invariant()
    def occupancy_never_exceeds_the_budget(self) -> None:
        """The engine holds at most as many frames as its regions have room for."""
        held, budget = self.engine.held, self.layout.budget
        self.hold(held <= budget, f"{held} frames are held; the budget is {budget}")

    @invariant()
    def the_budget_is_the_memory_it_takes(self) -> None:
        """The cache occupies the bytes that it occupied when it was made."""
        found = self.engine.nbytes
        self.hold(found == self.bytes, f"the cache grew from {self.bytes} to {found} bytes")

    @invariant()
    def frames_held_are_unique_and_in_order(self) -> None:
        """In time order origins ascend strictly, so no frame is held twice."""
        for layer, row, held in self.held_frames():
            self.hold(
                held == sorted(set(held)), f"layer {layer} holds {held} for sample {row}: a frame twice"
            )

    @invariant()
    def sink_is_the_first_frames(self) -> None:
        """The sink holds frames 0, 1, … in order."""
        sink = self.engine.regions.sink
        for layer, row, held in self.held_frames():
            found = held[: sink.stop]
            self.hold(found == list(sink), f"the sink of layer {layer}, sample {row}, is frames {found}")

    @invariant()
    def sink_never_changes_once_written(self) -> None:
        """The sink's keys and values stay what they were when they were written, bit for bit."""
        sink = self.engine.regions.sink
        for where, tensors in self.units().items():
            if where[2] in sink:
                old = self.sunk.setdefault(where, tensors)
                intact = all(same(a, b) for a, b in zip(old, tensors, strict=True))
                self.hold(intact, f"{_named(where)} is of the sink, yet it changed")

    @invariant()
    def recent_is_the_last_frames_in_order(self) -> None:
        """The recent region holds the last R frames, in order and without a gap."""
        recent, written = self.engine.regions.recent, self.engine.frames_written * self.layout.parts
        last = list(range(written - len(recent), written))
        for layer, row, held in self.held_frames():
            found = held[recent.start :]
            self.hold(found == last, f"layer {layer} holds {found} as recent for sample {row}, not {last}")

    @invariant()
    def memory_lies_between_sink_and_recent(self) -> None:
        """Memory's frames are newer than the sink and older than recent."""
        memory = self.engine.regions.memory
        written = self.engine.frames_written * self.layout.parts
        first_recent = written - len(self.engine.regions.recent)
        for layer, row, held in self.held_frames():
            found = held[memory.start : memory.stop]
            between = all(memory.start <= frame < first_recent for frame in found)
            self.hold(between, f"layer {layer} holds {found} as memory for sample {row}")

    @invariant()
    def every_frame_is_held_or_was_dropped_once(self) -> None:
        """Conservation: every frame ever written is held once or was dropped by name once, never both."""
        every = list(range(self.engine.frames_written * self.layout.parts))
        for layer, row, held in self.held_frames():
            found = sorted(held + self.dropped[layer][row])
            lost = sorted(set(every) - set(found))
            twice = sorted({frame for frame in found if found.count(frame) > 1})
            self.hold(
                found == every,
                f"layer {layer}, sample {row}: frames {lost} are neither held nor dropped by name, and "
                f"{twice} are accounted for more than once",
            )

    @invariant()
    def stored_tensors_are_finite(self) -> None:
        """No stored key or value is infinite or NaN."""
        for where, tensors in self.units().items():
            self.hold(all(bool(x.isfinite().all()) for x in tensors), f"{_named(where)} is not finite")

    # --- helpers --------------------------------------------------------------------------------------

    def hold(self, holds: bool, broken: str) -> None:
        """Raise a ConformanceError unless a condition holds."""
        if not holds:
            raise ConformanceError(
                f"after {self.engine.frames_written} frames in regions {self.layout}: {broken}"
            )

    def held_frames(self) -> list[tuple[int, int, list[int]]]:
        """Layer, sample and origins in time order, of every layer and sample."""
        if not self.engine.held:
            return []
        origins = self.engine.origins().tolist()
        return [(layer, row, held) for layer, rows in enumerate(origins) for row, held in enumerate(rows)]

    def units(self) -> Units:
        """Copies of every unit held."""
        found: Units = {}
        tensors = [self.engine.contents(layer) for layer in range(self.model.layers)]
        for layer, row, held in self.held_frames():
            keys, values = tensors[layer]
            for rank, origin in enumerate(held):
                found[layer, row, origin] = keys[row, rank], values[row, rank]
        return found

    def random_pass(self, frames: int) -> Pass:
        """Tensors of one pass."""
        return self.model.random_pass(self.generators, frames)


def _named(where: tuple[int, int, int]) -> str:
    layer, row, origin = where
    return f"frame {origin} in layer {layer}, sample {row},"
