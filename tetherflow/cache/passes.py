"""What a layer does in a pass: take in the chunk's keys and values, decide about memory, attend."""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from tetherflow.cache.answers import Selection
from tetherflow.cache.attention import Attention
from tetherflow.cache.beside import Beside
from tetherflow.cache.brought import Apart, Brought, Packed
from tetherflow.cache.checks import Checks
from tetherflow.cache.interfaces import CacheShape, Policy, Unpacks
from tetherflow.cache.known import Known
from tetherflow.cache.placing import Placing
from tetherflow.cache.recall import recall
from tetherflow.cache.revising import revise
from tetherflow.cache.site import Site
from tetherflow.cache.state import CacheState
from tetherflow.cache.viewing import View, look
from tetherflow.errors import TetherflowError


class Phase(enum.Enum):
    """Where a chunk stands: idle between chunks, denoising, or in its context pass."""

    IDLE = "idle"
    DENOISE = "denoise"
    COMMIT = "commit"


class CachePasses(CacheState):
    """The passes of a chunk, layer by layer; what goes on between them is the engine's, which makes all this.

    Attributes:
        shape: the backbone's sizes.
        policy: decides what is recalled, how it is edited and what attention reads.
        attention: computes attention over the view.
        placing: rotates.
        beside: does what a decision need not wait for.
        checks: takes the conditions on what plugins return.
        phase: where the chunk stands.
    """

    shape: CacheShape
    policy: Policy
    attention: Attention
    placing: Placing
    beside: Beside
    checks: Checks
    phase: Phase
    _rewriting: bool  # whether the current chunk was there before
    _hidden: int  # units after a chunk that is written anew
    _pending: int  # evicted units that await a decision
    _decided: set[int]  # layers in which it has been made
    _known: Known | None  # of all layers' units, before the first decides
    _shared: Selection | None  # the decision that later layers share
    _committed: set[int]  # layers whose context pass has run
    _views: dict[int, View]

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
            StageError: The policy broke a rule.
            TetherflowError: It is no time to attend, or the tensors are not this chunk's.
        """
        self._check_pass(layer, query, key, value)
        return self._attend(layer, Apart(self.placing, query, key, value))

    def attend_packed(self, layer: int, packed: Tensor, source: Unpacks) -> Tensor:
        """`attend` for queries and keys that are yet to be normalised, in the kernel that rotates them.

        Args:
            layer: index of the layer.
            packed: queries, keys and values, as one product gives them, `[B, F*T, 3, H, D]`.
            source: the module that gave it.
        """
        self._check_pass(layer, *packed.unbind(2))
        return self._attend(layer, Packed(self.placing, packed, source))

    def keep(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Take in what `attend` does in the context pass, for a layer after which nothing is computed.

        Raises:
            StageError: The policy broke a rule.
            TetherflowError: It is no context pass, or the tensors are not this chunk's.
        """
        self._expect(Phase.COMMIT, "keep")
        self._check_pass(layer, query, key, value)
        self._keep(layer, Apart(self.placing, query, key, value))

    def keep_packed(self, layer: int, packed: Tensor, source: Unpacks) -> None:
        """`keep` for queries and keys that are yet to be normalised (see `attend_packed`)."""
        self._expect(Phase.COMMIT, "keep")
        self._check_pass(layer, *packed.unbind(2))
        self._keep(layer, Packed(self.placing, packed, source))

    def pass_kind(self) -> Hashable | None:
        """What the next denoising pass does, but for the values in its tensors and the policy's buffers.

        Passes of equal kinds read and write the same memory in the same way, so that one that was recorded
        (CUDA graphs) can stand for another.

        Returns:
            None if the pass may do what no other does: the context pass, one in which memory is decided or
            rotated keys are made anew, or one whose heads read what the policy says.
        """
        if self.phase is not Phase.DENOISE:
            return None
        deciding = self._pending and self.policy.uses.recall == "first-pass"
        if deciding and len(self._decided) < len(self.layers):
            return None
        views = self._views.values()
        if any(view.groups for view in views) or any(store.shared for store in self.layers):
            return None
        # Where phases are made anew they may lie elsewhere.
        return (self._history, self.held, *(view.phases.data_ptr() for view in views))

    def join(self) -> None:
        """Let what follows wait for what a pass has left to be done beside it (`cache.beside`)."""
        self.beside.join()

    def retake(self) -> Callable[[], None]:
        """What takes the host back to before a pass, if nothing of the pass is computed after all."""
        committed, decided, views = set(self._committed), set(self._decided), dict(self._views)
        shared, dropped, orders = self._shared, list(self.dropped), [store.order for store in self.layers]
        known = self._known
        forget = self.checks.retake()

        def back() -> None:
            self._committed, self._decided, self._views = committed, decided, views
            self._shared, self.dropped, self._known = shared, dropped, known
            for store, order in zip(self.layers, orders, strict=True):
                store.order = order
            forget()
            self.beside.forget()

        return back

    def _attend(self, layer: int, brought: Brought) -> Tensor:
        """`attend`, whatever the tensors are."""
        view, turned = self._take(layer, brought)
        out = view.read(self.layers[layer], self.held, turned, self.attention)
        self._revise(layer, view, brought)
        return out

    def _keep(self, layer: int, brought: Brought) -> None:
        """`keep`, likewise."""
        view, _ = self._take(layer, brought)
        self._revise(layer, view, brought)

    def _take(self, layer: int, brought: Brought) -> tuple[View, Tensor]:
        """Take in a pass's keys and values; returns what is read then, and rotated queries."""
        store = self.layers[layer]
        stays = self.phase is Phase.COMMIT and store.rotated is not None
        decides = self._decides(layer)
        if not decides or self._known is None:
            self.beside.join()  # what the pass before, or the layer, has left to be done beside it
        slots = range(self._history, self.held)
        if decides and self.policy.uses.mean_query and self._choice_for(layer) is None:
            _ = brought.mean_query  # by itself: beside the writes it would take three times as long
        # A decision looks at queries alone. What is made beside it may be freed without a word: nothing else
        # is made there before the next `beside`, which waits for all that reads it here.
        with self.beside(*brought.tensors) if decides else nullcontext():
            turned = self._write(layer, brought, stays=stays)  # first, since stages may read what is written
            if stays:
                self.beside.later(partial(store.pool, slots.start, slots.stop))
        written = self.beside.mark()
        if decides:
            self._decide(layer, brought)
        view = self._views[layer]
        if store.shared:
            self.placing.rotate(store, range(self._history), view.placement)
        written()  # before any of it is read here
        if decides and self.policy.uses.place:  # which may have placed the chunk elsewhere
            turned = self._write(layer, brought)
        self.beside.launch()
        return view, turned

    def _decides(self, layer: int) -> bool:
        """Whether this pass is the one in which a layer's memory is decided."""
        now = self.phase is Phase.COMMIT or self.policy.uses.recall == "first-pass"
        return now and self._pending > 0 and layer not in self._decided

    def _write(self, layer: int, brought: Brought, *, stays: bool = False) -> Tensor:
        """Write a pass's rotated keys, and its values, to their slots; returns its rotated queries.

        Args:
            layer: index of the layer.
            brought: what the pass brings.
            stays: whether unrotated keys are written, too.
        """
        store = self.layers[layer]
        keys, values, plain = (
            buffer[:, self._history : self.held].flatten(1, 2)
            for buffer in (store.read_keys, store.values, store.keys)
        )
        return brought.write(self._views[layer].phases, keys, values, plain if stays else None)

    def _revise(self, layer: int, view: View, brought: Brought) -> None:
        """Let the policy change a layer's units after its context pass."""
        if self.policy.uses.revise and self.phase is Phase.COMMIT and not self._rewriting:
            revise(self._site(layer), view, brought)

    def _decide(self, index: int, brought: Brought) -> None:
        """Let one layer's pending units compete for memory, and rotate memory to its new ranks."""
        store, site = self.layers[index], self._site(index)
        pending = self.waiting[: self._pending].expand(self.batch, -1)
        decision = recall(site, pending, brought, self._choice_for(index), self._known_of(index), moves=True)
        self._decided.add(index)
        self._share(index, decision.selection)
        self.drop(index, decision.dropped)
        store.sort(self.held)
        changed = site.regions.memory
        if self.policy.uses.merge:
            changed = range(site.regions.bank.start, changed.stop)
        self._views[index] = look(site, changed, self._views[index])

    def _known_of(self, index: int) -> Known:
        """What is known of a layer's units before its memory is decided: of all layers, once a chunk.

        Until then a layer's book and order stay as they are, whatever others decide.
        """
        if self._known is None:
            memory = self.regions.memory
            order = torch.cat([store.order[:, : memory.stop] for store in self.layers])
            newcomers = self.waiting[: self._pending].expand(len(order), -1)
            pools, fuse = self.policy.uses.edit, self.layers[0].fuse
            self._known = Known.of(self.book, order, newcomers, memory.start, pools=pools, fuse=fuse)
        return self._known.rows(index * self.batch, (index + 1) * self.batch)

    def _choice_for(self, index: int) -> Selection | None:
        """What another layer has decided for this one, too; None if it decides alone.

        Raises:
            TetherflowError: That layer has not decided yet.
        """
        decides_at = self.policy.uses.decides_at
        if decides_at is None or index <= decides_at:
            return None
        if self._shared is None:
            raise TetherflowError(
                f"layer {index} shares layer {decides_at}'s decision, which is still to come; layers must "
                "attend in order"
            )
        return self._shared

    def _share(self, index: int, selection: Selection | None) -> None:
        if index == self.policy.uses.decides_at:
            self._shared = selection

    def _site(self, index: int, coming: int | None = None) -> Site:
        """A layer with the current chunk in, or before a chunk of `coming` units."""
        again = self._hidden + (self._incoming if self._rewriting else 0)
        return Site(
            layer=index,
            chunk=self.chunk,
            store=self.layers[index],
            policy=self.policy,
            checks=self.checks,
            beside=self.beside,
            placing=self.placing,
            layout=self.layout,
            regions=self.regions,
            incoming=self._incoming if coming is None else coming,
            current=range(self.held if coming is not None else self._history, self.held),
            first_frame=self.frames_written - again // self.layout.parts,
            event=self._event,
        )

    def _check_pass(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Refuse what would go wrong in silence: shapes that broadcast, a second context pass."""
        if self.phase is Phase.IDLE:
            raise TetherflowError("attend was called between chunks; call begin first")
        tokens = self._incoming // self.layout.parts * self.shape.tokens
        expected = (self.batch, tokens, self.shape.heads, self.shape.head_dim)
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

    def _expect(self, phase: Phase, call: str) -> None:
        if self.phase is not phase:
            raise TetherflowError(
                f"{call} was called in phase '{self.phase.value}'; it belongs in '{phase.value}'"
            )
