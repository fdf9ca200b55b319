"""The cache engine: drives a policy's stages through the phases of a chunk."""

from __future__ import annotations

from typing import Any

import torch

from tetherflow.cache.attention import PLAIN, Attention
from tetherflow.cache.beside import Beside
from tetherflow.cache.book import EMPTY
from tetherflow.cache.checks import Checks
from tetherflow.cache.events import FLUSH_KEEPS, Event
from tetherflow.cache.fusing import Fuse, step_by_step
from tetherflow.cache.interfaces import CacheShape, Policy, Positions, Rotary, Unit, fitted
from tetherflow.cache.layout import Layout
from tetherflow.cache.leaving import Departure, make_room
from tetherflow.cache.passes import CachePasses, Phase
from tetherflow.cache.placing import Placing
from tetherflow.cache.viewing import look
from tetherflow.errors import LayoutError, TetherflowError


class CacheEngine(CachePasses):
    """Keeps one rollout's keys and values within budget, as a policy decides.

    A chunk goes through `begin`, any number of denoising passes, `commit` (which turns the next pass into the
    context pass) and `end`. In each pass the transformer calls `attend` once a layer, in any order of layers
    unless they share a decision. Samples of a batch, and layers, decide apart. Between chunks the prompt may
    switch (`switch`), and the newest frames may be written anew (`rewrite`).

    The engine, not the policy, keeps the invariants: the budget, unique origins, the frozen sink, and that
    every unit ever written is in exactly one region or was dropped by name (`dropped`).

    Args:
        shape: the backbone's sizes.
        layout: the regions, in latent frames; the attribute of the same name is in units.
        policy: decides what leaves, what is recalled and how it is edited.
        rotary: the backbone's rotary embedding.
        batch: samples, B.
        positions: how keys are positioned, unless the policy places them.
        unit: what is kept or dropped as a whole.
        dtype: type of keys and values.
        device: where they live.
        strict: whether to check plugins' results at once; otherwise a chunk late, without a stall.
        attention: computes attention over the view.
        chunk_frames: frames of the largest chunk; those of the recent region if omitted. Evicted units of as
            many frames can wait for a decision, or of all recent ones if the policy is eager.
        share_rotated: whether layers take turns with one buffer of rotated keys, and rotate in every pass: a
            third less memory where there is such a buffer, and the same bits.
        fuse: makes kernels of what is done to large tensors.
        coarse: whether the keys and values that attention reads are rounded (`cache.rounding`).

    Raises:
        LayoutError: The regions or the unit do not suit the policy, or units do not divide a frame.
    """

    def __init__(
        self,
        shape: CacheShape,
        layout: Layout,
        policy: Policy,
        rotary: Rotary,
        *,
        batch: int = 1,
        positions: Positions = "block-relative",
        unit: Unit = "frame",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        strict: bool = True,
        attention: Attention = PLAIN,
        chunk_frames: int | None = None,
        share_rotated: bool = False,
        fuse: Fuse = step_by_step,
        coarse: bool = False,
    ) -> None:
        self.chunk_frames = layout.recent if chunk_frames is None else chunk_frames
        super().__init__(
            shape,
            fitted(layout, policy, shape, unit, self.chunk_frames),
            policy,
            batch=batch,
            positions=positions,
            dtype=dtype,
            device=torch.device(device),
            chunk_frames=self.chunk_frames,
            share_rotated=share_rotated,
            fuse=fuse,
            coarse=coarse,
        )
        self.shape = shape
        self.policy = policy
        self.rotary = rotary
        self.positions = positions
        self.attention = attention
        self.placing = Placing(rotary, shape, self.layout, positions, self.device, fuse, coarse)
        self.beside = Beside(self.device)
        self.checks = Checks(strict=strict, beside=self.beside)
        self.phase = Phase.IDLE
        self._rewriting = False
        self._hidden = 0  # units after a chunk that is written anew, out of sight meanwhile
        self._pending = 0
        self._decided = set()
        self._known = None
        self._shared = None
        self._committed = set()
        self._views = {}

    def begin(self, frames: int) -> None:
        """Make room for a chunk of `frames` latent frames, asking the policy what leaves.

        Raises:
            LayoutError: The chunk is larger than the recent region.
            StageError: The policy broke a rule.
        """
        self._expect(Phase.IDLE, "begin")
        if frames < 1:
            raise LayoutError(f"a chunk of {frames} frames; it needs at least 1")
        self.layout.check_chunk(frames)
        if frames > self.chunk_frames:
            raise LayoutError(
                f"a chunk of {frames} frames; this cache was made for {self.chunk_frames} at most"
            )
        self.phase = Phase.DENOISE
        self.chunk += 1
        if self._event is None:  # else what left at the switch is this chunk's
            self.forget_dropped()
        units, parts = frames * self.layout.parts, self.layout.parts
        changed = self._make_room(units)
        self._incoming = units
        self._memory = max(self._memory, self.held - self.layout.standing - self.layout.recent)
        first = self.frames_written * parts
        origins = torch.arange(first, first + units, device=self.device)
        self.book.admit(slice(self._history, self.held), origins)
        self.sort()
        self._look(changed, frames, self.frames_written)

    def commit(self) -> None:
        """Turn the next pass into the context pass, whose clean keys and values stay."""
        self._expect(Phase.DENOISE, "commit")
        self.phase = Phase.COMMIT
        self._committed.clear()

    def end(self) -> None:
        """Finish the chunk after its context pass.

        Raises:
            StageError: With deferred checks, what the policy broke in the chunk before.
            TetherflowError: A layer did not attend in the context pass, so its clean keys are missing.
        """
        self._expect(Phase.COMMIT, "end")
        self.join()
        if missing := sorted(set(range(len(self.layers))) - self._committed):
            raise TetherflowError(f"end was called, but layers {missing} did not attend in the context pass")
        self.phase, self._known = Phase.IDLE, None
        if self._pending:
            self.book.origins[:, self.layout.budget :] = EMPTY  # what waited has been decided upon
        if self._rewriting:
            self._reveal()
        else:
            self.frames_written += self._incoming // self.layout.parts
            self._event = None
        self.checks.flush()

    def switch(self, event: Event) -> None:
        """Tell the policy of a prompt switch between chunks, and drop what it lets go of.

        Raises:
            StageError: The policy broke a rule.
        """
        self._expect(Phase.IDLE, "switch")
        if self._event is None:
            self.forget_dropped()
        self._event = event
        frames = self.policy.switch(self.layout, event)
        if frames is None and event.how in ("flush", "cut"):
            frames = FLUSH_KEEPS
        standing = min(self.layout.standing, self.held)
        if frames is None or self.held - frames * self.layout.parts <= standing:
            return
        ranks = range(standing, self.held - frames * self.layout.parts)
        self.vacate([store.at(ranks) for store in self.layers])
        self._history, self._incoming = self.held - len(ranks), 0
        # Memory goes first. Recent may have been half empty, where more was sent away than had to go.
        self._memory = max(0, self._memory - len(ranks))
        self._stale = ranks.start
        self.sort()

    @property
    def rewritable(self) -> int:
        """How many of the newest latent frames `rewrite` may write anew: those of the recent region."""
        return len(self.regions.recent) // self.layout.parts

    def rewrite(self, frames: int, newer: int = 0) -> None:
        """Turn the next pass into a context pass that writes recent latent frames anew, where they are.

        Under a new prompt (KV recache, LongLive, arXiv 2509.22622, section 3.1). `end` finishes it. Until
        then the frames after them are out of sight: attention reads what it could when they were new.

        Args:
            frames: how many.
            newer: how many frames after them stay as they are.

        Raises:
            LayoutError: The recent region holds fewer, or none is asked for.
        """
        self._expect(Phase.IDLE, "rewrite")
        if frames < 1 or newer < 0 or frames + newer > self.rewritable:
            before = f", {newer} before the end," if newer else ""
            raise LayoutError(
                f"{frames} frames{before} cannot be written anew; recent holds {self.rewritable}"
            )
        units, hidden = frames * self.layout.parts, newer * self.layout.parts
        for store in self.layers:
            store.arrange()
        self._history, self._incoming = self.held - hidden - units, units
        self.sort()
        self._hidden, self._pending = hidden, 0
        self._rewriting = True
        self.phase = Phase.COMMIT
        self._committed.clear()
        first = self.frames_written - newer - frames
        self._look([self._moved(self._history) for _ in self.layers], frames, first)

    def snapshot(self) -> dict[str, Any]:
        """A copy of the whole state between chunks, from which `restore` continues bit for bit.

        Raises:
            StageError: What a stage returned in the last chunk was at fault, and its check was deferred.
        """
        self._expect(Phase.IDLE, "snapshot")
        self.checks.drain()
        return super().snapshot()

    def restore(self, state: dict[str, Any]) -> None:
        """Bring back what `snapshot` of an engine of the same shape returned, whatever the phase.

        Raises:
            TetherflowError: The snapshot is of an engine of another shape.
        """
        self.join()  # nothing of before may yet write to what is restored
        self.checks.forget()
        super().restore(state)
        self.phase = Phase.IDLE
        self._pending, self._hidden, self._rewriting, self._known = 0, 0, False, None
        self._views.clear()

    def _make_room(self, units: int) -> list[range]:
        """Let units leave every layer until `units` fit; returns the ranks whose keys are to be rotated."""
        self._decided.clear()
        self._known, self._shared, self._pending = None, None, 0
        held = self.held
        count = held + units - self.layout.budget
        if count <= 0:
            self._history, self._incoming = held, 0
            return [self._moved(held) for _ in self.layers]
        self._memory = self.layout.memory  # the chunk pushes out of recent what memory still has room for
        departures: list[Departure] = []
        for index in range(len(self.layers)):
            chosen = self._choice_for(index) if self.policy.uses.recall == "begin" else None
            departure = make_room(self._site(index, units), count, chosen)
            if departures and departure.count != departures[0].count:
                raise TetherflowError(
                    f"{departure.count} units leave layer {index}, but {departures[0].count} leave layer 0; "
                    "an eager evictor takes as many from every layer"
                )
            self._share(index, departure.selection)
            departures.append(departure)
        leaving = departures[0].count
        self._history, self._incoming = held - leaving, 0
        self._pending = leaving if self.policy.uses.recall in ("first-pass", "commit") else 0
        changed = [self._moved(departure.moved, departure.rewritten) for departure in departures]
        # Sink and bank never change slots; where all other keys are rotated anew, no copies need go along.
        rotated = any(ranks.start > self.layout.standing or ranks.stop < self._history for ranks in changed)
        self.vacate([departure.leaving for departure in departures], aside=self._pending > 0, rotated=rotated)
        return changed

    def _moved(self, first: int, rewritten: range = range(0)) -> range:
        """Ranks whose keys are to be rotated when ranks from `first` on have moved, others are rewritten."""
        if self.positions == "absolute" and not self.policy.uses.place:
            return rewritten
        start = min(first, rewritten.start) if rewritten else first
        return range(start if self._stale is None else min(start, self._stale), self._history)

    def _look(self, changed: list[range], frames: int, first_frame: int) -> None:
        """Place the current chunk's `frames` frames, from `first_frame` on, and see what each layer reads."""
        self._stale = None
        self.placing.begin(self._history, frames, first_frame)
        for index in range(len(self.layers)):
            self._views[index] = look(self._site(index), changed[index], self._views.get(index))
        self.beside.join()

    def _reveal(self) -> None:
        """Bring back into sight what is newer than a chunk that was written anew."""
        self._rewriting = False
        if not self._hidden:
            return
        self._stale = self.held  # whether their keys stand where they should was not looked at
        self._incoming, self._hidden = self._incoming + self._hidden, 0
        self.sort()
