"""The cache engine: drives a policy's stages through the phases of a chunk."""

from __future__ import annotations

import enum
from typing import Any

import torch
from torch import Tensor

from tetherflow.cache.attention import attention
from tetherflow.cache.checks import Checks
from tetherflow.cache.interfaces import CacheShape, Policy, Positions, Rotary
from tetherflow.cache.layout import Layout
from tetherflow.cache.recall import recall
from tetherflow.cache.stage_data import Slots
from tetherflow.cache.store import EMPTY, LayerStore, StoreShape, pair_off
from tetherflow.errors import LayoutError, TetherflowError


class Phase(enum.Enum):
    """Where a chunk stands: idle between chunks, denoising, or in its context pass."""

    IDLE = "idle"
    DENOISE = "denoise"
    COMMIT = "commit"


class CacheEngine:
    """Keeps one rollout's keys and values within budget, as a policy decides.

    A chunk goes through `begin`, any number of denoising passes, `commit` (which turns the next pass into the
    context pass) and `end`. In each pass the transformer calls `attend` once a layer, in any order of layers.
    Samples of a batch, and layers, decide apart.

    The engine, not the policy, keeps the invariants: the budget, unique origins, the frozen sink, and that
    every unit ever written is in exactly one region or was dropped by name (`dropped`).

    Args:
        shape: the backbone's sizes.
        layout: the regions.
        policy: decides what leaves, what is recalled and how it is edited.
        rotary: the backbone's rotary embedding.
        batch: samples, B.
        positions: how keys are positioned.
        dtype: type of keys and values.
        device: where they live.
        strict: whether to check plugins' results at once; otherwise a chunk late, without a stall.

    Raises:
        LayoutError: The regions do not suit the policy, or recall is asked of absolute positions.
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
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        strict: bool = True,
    ) -> None:
        policy.check_layout(layout)
        if policy.recalls and positions == "absolute":
            raise LayoutError(
                "recall compares unrotated keys; it needs block-relative positions, not absolute"
            )
        if policy.recalls and not layout.memory:
            raise LayoutError("the policy recalls into memory, but the regions give it 0 frames; give it 1")
        self.shape = shape
        self.layout = layout
        self.policy = policy
        self.rotary = rotary
        self.batch = batch
        self.positions = positions
        self.device = torch.device(device)
        self.checks = Checks(strict=strict)
        sizes = StoreShape(
            batch,
            layout.budget,
            layout.recent if policy.recalls else 0,
            shape.tokens,
            shape.heads,
            shape.head_dim,
        )
        self.layers = [
            LayerStore(
                sizes,
                dtype=dtype,
                device=self.device,
                rotated=positions == "block-relative",
                pooled=policy.recalls,
            )
            for _ in range(shape.layers)
        ]
        self.phase = Phase.IDLE
        self.chunk = -1
        self.frames_written = 0
        self.dropped: list[Tensor] = [self._no_units() for _ in self.layers]
        self._history = 0  # units kept while the current chunk runs
        self._incoming = 0  # units of the current chunk
        self._pending = 0  # evicted units that await the context pass
        self._committed: set[int] = set()  # layers whose context pass has run
        if positions == "block-relative":
            self._ranks = rotary.phases(torch.arange(layout.budget, device=self.device))
        self._chunk_phases = torch.empty(0)

    @property
    def held(self) -> int:
        """Units in the cache, the current chunk's included."""
        return self._history + self._incoming

    @property
    def nbytes(self) -> int:
        """Bytes that the cache occupies, side buffers included."""
        return sum(layer.nbytes for layer in self.layers)

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
        self.phase = Phase.DENOISE
        self.chunk += 1
        held, self._incoming = self.held, frames
        leaving = max(0, held + frames - self.layout.budget)
        self._history = held - leaving
        self._pending = leaving if self.policy.recalls else 0
        self.dropped = [self._no_units() for _ in self.layers]
        if leaving:
            for index in range(len(self.layers)):
                self._make_room(index, held, leaving)
        frames_now = torch.arange(self.frames_written, self.frames_written + frames, device=self.device)
        for layer in self.layers:
            layer.origins[:, self._history : self.held] = frames_now
            layer.sort(self.held)
        if self.positions == "absolute":
            self._chunk_phases = self.rotary.phases(frames_now)
        else:
            self._chunk_phases = self._ranks[self._history : self.held]

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
        if missing := sorted(set(range(len(self.layers))) - self._committed):
            raise TetherflowError(f"end was called, but layers {missing} did not attend in the context pass")
        self.phase = Phase.IDLE
        self.frames_written += self._incoming
        self.checks.flush()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Take in one layer's keys and values of a pass, and attend over the layer's view.

        Args:
            layer: index of the layer.
            query: unrotated, `[B, F*T, H, D]`.
            key: unrotated, likewise.
            value: likewise.

        Returns:
            The attended values `[B, F*T, H, D]`.

        Raises:
            StageError: The policy broke a rule in the context pass.
            TetherflowError: It is no time to attend, or the tensors are not this chunk's.
        """
        self._check_pass(layer, query, key, value)
        store = self.layers[layer]
        start, stop = self._history, self.held
        query, key, value = (x.unflatten(1, (self._incoming, -1)) for x in (query, key, value))
        turned = self.rotary.turn(key, self._chunk_phases)
        store.values[:, start:stop] = value
        store.read_keys[:, start:stop] = turned
        if self.phase is Phase.COMMIT:
            if store.rotated is not None:
                store.keys[:, start:stop] = key
            store.pool(start, stop)
            if self._pending:
                self._recall(layer, query)
        return attention(
            self.rotary.turn(query, self._chunk_phases).flatten(1, 2),
            store.read_keys[:, :stop].flatten(1, 2),
            store.values[:, :stop].flatten(1, 2),
        )

    def origins(self) -> Tensor:
        """Latent frame of every unit held, in time order, int64 `[layers, B, held]`."""
        return torch.stack([layer.unit_origins(layer.order) for layer in self.layers])

    def memory_origins(self) -> Tensor:
        """Latent frame of every memory slot, int64 `[layers, B, M]`; −1 until the cache is full."""
        if self.held < self.layout.budget:
            shape = (len(self.layers), self.batch, self.layout.memory)
            return torch.full(shape, EMPTY, dtype=torch.int64, device=self.device)
        memory = self.layout.memory_of(self.held)
        return self.origins()[:, :, memory.start : memory.stop]

    def contents(self, layer: int) -> tuple[Tensor, Tensor]:
        """Copies of a layer's keys and values in time order, each `[B, held, T, H, D]`.

        Keys are unrotated with block-relative positions and rotated with absolute ones.
        """
        store = self.layers[layer]
        return store.take(store.keys, store.order), store.take(store.values, store.order)

    def snapshot(self) -> dict[str, Any]:
        """A copy of the whole state between chunks, from which `restore` continues bit for bit."""
        self._expect(Phase.IDLE, "snapshot")
        counters = {
            name: getattr(self, name) for name in ("chunk", "frames_written", "_history", "_incoming")
        }
        return {
            "counters": counters,
            "dropped": [tensor.clone() for tensor in self.dropped],
            "layers": [layer.snapshot() for layer in self.layers],
        }

    @torch.inference_mode()  # a session's buffers are inference tensors, which may be written nowhere else
    def restore(self, state: dict[str, Any]) -> None:
        """Bring back what `snapshot` of an engine of the same shape returned.

        Raises:
            TetherflowError: The snapshot is of an engine of another shape.
        """
        found = [
            {name: tensor.shape for name, tensor in layer.items() if name != "order"}
            for layer in state["layers"]
        ]
        if found != [layer.shapes() for layer in self.layers]:
            raise TetherflowError(
                "this snapshot was taken of an engine of another shape: batch, regions or backbone"
            )
        for name, value in state["counters"].items():
            setattr(self, name, value)
        for layer, tensors in zip(self.layers, state["layers"], strict=True):
            layer.restore(tensors)
        self.phase = Phase.IDLE
        self._pending = 0
        self.dropped = [tensor.clone() for tensor in state["dropped"]]

    def _make_room(self, index: int, held: int, leaving: int) -> None:
        """Evict from one layer, and close the gap: units kept end up in the first `_history` slots."""
        store = self.layers[index]
        store.sort(held)
        slots = Slots(index, self.chunk, self.layout, self._incoming, store.unit_origins(store.order))
        eviction = self.policy.evict(slots, leaving, self.checks)
        first = eviction.ranks.start if isinstance(eviction.ranks, range) else 0
        if isinstance(eviction.ranks, range):
            evicted = store.order[:, eviction.ranks.start : eviction.ranks.stop]
        else:
            evicted = store.order.gather(1, eviction.ranks)
        budget = self.layout.budget
        if eviction.to == "memory":
            store.move(evicted, torch.arange(budget, budget + leaving, device=self.device).expand_as(evicted))
        else:
            self.dropped[index] = store.unit_origins(evicted)
        gone = torch.zeros(self.batch, held, dtype=torch.bool, device=self.device).scatter_(1, evicted, True)
        tail = torch.arange(self._history, held, device=self.device).expand(self.batch, -1)
        holes = evicted.sort(dim=1).values  # those below the new end first
        target = pair_off(tail, ~gone[:, self._history :], holes)
        store.move(tail, target, rotated=True)
        store.origins[:, self._history : held] = EMPTY
        if store.rotated is not None:
            # Units below the first evicted rank keep their ranks, and so their rotated keys.
            store.sort(self._history)
            self._rotate(store, first, self._history)

    def _recall(self, index: int, query: Tensor) -> None:
        """Let one layer's pending units compete for memory, and rotate memory to its new ranks."""
        store = self.layers[index]
        memory = self.layout.memory_of(self.held)
        members = store.order[:, memory.start : memory.stop]
        sink = store.order[:, : memory.start]
        budget = self.layout.budget
        pending = torch.arange(budget, budget + self._pending, device=self.device).expand(self.batch, -1)
        self.dropped[index] = recall(
            store, self.policy, self.checks, index, self.chunk, query, sink, members, pending
        )
        store.origins[:, budget:] = EMPTY
        store.sort(self.held)
        self._rotate(store, memory.start, memory.stop)

    def _rotate(self, store: LayerStore, start: int, stop: int) -> None:
        """Rotate the keys of ranks `start … stop-1` into the copy that attention reads."""
        if store.rotated is None or start >= stop:
            return
        slots = store.order[:, start:stop]
        turned = self.rotary.turn(store.take(store.keys, slots), self._ranks[start:stop])
        store.put(store.rotated, slots, turned)

    def _check_pass(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Refuse what would go wrong in silence: shapes that broadcast, a second context pass."""
        if self.phase is Phase.IDLE:
            raise TetherflowError("attend was called between chunks; call begin first")
        expected = (self.batch, self._incoming * self.shape.tokens, self.shape.heads, self.shape.head_dim)
        for name, tensor in (("query", query), ("key", key), ("value", value)):
            if tensor.shape != expected:
                raise TetherflowError(
                    f"layer {layer}: the {name} is {list(tensor.shape)}; this chunk's is {list(expected)} "
                    "(samples, frames x tokens, heads, head width)"
                )
        if self.phase is Phase.COMMIT:
            if layer in self._committed:
                raise TetherflowError(f"layer {layer} attends a second time in the context pass")
            self._committed.add(layer)

    def _no_units(self) -> Tensor:
        return torch.empty(self.batch, 0, dtype=torch.int64, device=self.device)

    def _expect(self, phase: Phase, call: str) -> None:
        if self.phase is not phase:
            raise TetherflowError(
                f"{call} was called in phase '{self.phase.value}'; it belongs in '{phase.value}'"
            )
