"""A naive cache to hold the engine against: plain lists of frames, for every layer and sample apart.

Nothing here is pooled, moved by index, rotated ahead of time or batched: each formula is written out over the
tokens themselves, in float64, as its paper writes it.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from tetherflow import Destination, Layout
from tetherflow.cache import Positions

Grid = tuple[int, int]


@dataclasses.dataclass(eq=False)
class Frame:
    """One latent frame's unrotated key and value, float64 `[T, H, D]`, and its index in the video."""

    origin: int
    key: Tensor
    value: Tensor


# --- positions and attention --------------------------------------------------------------------------


@cache
def angles(position: int, head_dim: int, grid: Grid) -> Tensor:
    """The angle of every token's every channel pair, float64 `[T, 1, head_dim / 2]`."""
    space = head_dim // 6
    time = head_dim // 2 - 2 * space
    rows = []
    for row in range(grid[0]):
        for column in range(grid[1]):
            turned = [position * 10000 ** -(i / time) for i in range(time)]
            turned += [row * 10000 ** -(i / space) for i in range(space)]
            turned += [column * 10000 ** -(i / space) for i in range(space)]
            rows.append([turned])
    return torch.tensor(rows, dtype=torch.float64)


def rotate(x: Tensor, position: int, grid: Grid) -> Tensor:
    """Rotate one frame `[T, H, D]` to a temporal position, pair by pair of channels."""
    x = x.double()
    angle = angles(position, x.shape[-1], grid)
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = torch.empty_like(x)
    turned[..., 0::2] = even * angle.cos() - odd * angle.sin()
    turned[..., 1::2] = even * angle.sin() + odd * angle.cos()
    return turned


def dense_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention, head by head; tensors are `[L, H, D]`."""
    heads = []
    for head in range(query.shape[1]):
        logits = query[:, head] @ key[:, head].T / math.sqrt(query.shape[-1])
        heads.append(logits.softmax(dim=-1) @ value[:, head])
    return torch.stack(heads, dim=1)


# --- the stages of TetherCache (arXiv 2606.13035) -----------------------------------------------------


def relevance(frames: Sequence[Frame], query: Tensor, temperature: float) -> list[float]:
    """Softmax over the frames' mean logits, every logit of the query `[L, H, D]` materialised."""
    means = []
    for frame in frames:
        logits = torch.einsum("qhd,khd->hqk", query.double(), frame.key) / math.sqrt(query.shape[-1])
        means.append(float(logits.mean()) / temperature)
    weights = [math.exp(mean - max(means)) for mean in means]
    return [weight / sum(weights) for weight in weights]


def diversity(mass: Sequence[float], origins: Sequence[int], alpha: float) -> list[float]:
    """α · max(0, 1 − r_i), r_i being the largest a_j · exp(−|i − j| / σ) over the other frames."""
    sigma = max(1.0, (max(origins) - min(origins) + 1) / 2)
    result = []
    for i, here in enumerate(origins):
        redundancy = 0.0
        for j, there in enumerate(origins):
            if j != i:
                redundancy = max(redundancy, mass[j] * math.exp(-abs(here - there) / sigma))
        result.append(alpha * max(0.0, 1 - redundancy))
    return result


def grab(frames: Sequence[Frame], query: Tensor, temperature: float, alpha: float) -> list[float]:
    """GRAB's score of every frame."""
    mass = relevance(frames, query, temperature)
    extra = diversity(mass, [frame.origin for frame in frames], alpha)
    return [a + b for a, b in zip(mass, extra, strict=True)]


def top(scores: Sequence[float], count: int) -> list[int]:
    """Indices of the `count` best scores, in ascending order."""
    best = sorted(range(len(scores)), key=lambda i: -scores[i])[:count]
    return sorted(best)


def margin(scores: Sequence[float], count: int) -> float:
    """How far the worst score that is kept lies above the best that is not."""
    ordered = sorted(scores, reverse=True)
    return math.inf if count >= len(ordered) else ordered[count - 1] - ordered[count]


def restyle(x: Tensor, pool: Sequence[Tensor], tau: float) -> Tensor:
    """TAME on one tensor `[T, H, D]`: (1 − τ) x + τ (σ_t (x − μ_x) / σ_x + μ_t), channel by channel."""
    trusted = torch.cat(list(pool))
    spread = x.std(dim=0, correction=0).clamp_min(1e-6)
    target = (x - x.mean(dim=0)) / spread * trusted.std(dim=0, correction=0) + trusted.mean(dim=0)
    return (1 - tau) * x + tau * target


def tame(frame: Frame, trusted: Sequence[Frame], tau: float) -> Frame:
    """TAME on a frame's key and value."""
    if not tau or not trusted:
        return frame
    return Frame(
        frame.origin,
        restyle(frame.key, [other.key for other in trusted], tau),
        restyle(frame.value, [other.value for other in trusted], tau),
    )


# --- the cache ----------------------------------------------------------------------------------------

Evict = Callable[["Cell", int, int], list[int]]
"""(cell, incoming, count) to the ranks that leave."""

Choose = Callable[["Cell", list[Frame], Tensor], list[int]]
"""(cell, candidates, query of the context pass `[L, H, D]`) to the indices that stay."""

Edit = Callable[["Cell", Frame, list[Frame]], Frame]
"""(cell, newcomer, trusted pool) to the newcomer as it enters memory."""


def evict_oldest(cell: Cell, incoming: int, count: int) -> list[int]:
    """FIFO past the sink."""
    return list(range(cell.layout.sink, cell.layout.sink + count))


def evict_recent(cell: Cell, incoming: int, count: int) -> list[int]:
    """The oldest of recent, once sink and memory are full."""
    first = cell.layout.sink + cell.layout.memory
    return list(range(first, first + count))


@dataclasses.dataclass
class Rules:
    """A cache policy in the oracle's terms; without `choose`, what leaves is dropped."""

    evict: Evict
    choose: Choose | None = None
    edit: Edit | None = None

    @property
    def to(self) -> Destination:
        return "drop" if self.choose is None else "memory"


@dataclasses.dataclass
class Cell:
    """One layer's cache of one sample: frames in time order, those pending, and names of the dropped."""

    layer: int
    row: int
    layout: Layout
    positions: Positions
    grid: Grid
    frames: list[Frame] = dataclasses.field(default_factory=list)
    pending: list[Frame] = dataclasses.field(default_factory=list)
    dropped: list[int] = dataclasses.field(default_factory=list)

    @property
    def origins(self) -> list[int]:
        return [frame.origin for frame in self.frames]

    def make_room(self, incoming: int, rules: Rules) -> None:
        """Evict until `incoming` frames fit."""
        count = len(self.frames) + incoming - self.layout.budget
        if count <= 0:
            return
        ranks = rules.evict(self, incoming, count)
        leaving = [self.frames[rank] for rank in ranks]
        self.frames = [frame for rank, frame in enumerate(self.frames) if rank not in ranks]
        if rules.to == "memory":
            self.pending = leaving
        else:
            self.dropped += [frame.origin for frame in leaving]

    def recall(self, incoming: int, query: Tensor, rules: Rules) -> None:
        """Let the pending frames compete with memory; the `incoming` frames of the chunk are not in yet."""
        if not self.pending or rules.choose is None:
            return
        sink, memory, recent = self.regions(incoming)
        candidates = memory + self.pending
        chosen = rules.choose(self, candidates, query)
        trusted = sink + memory
        kept = []
        for index in chosen:
            frame = candidates[index]
            newcomer = index >= len(memory)
            kept.append(rules.edit(self, frame, trusted) if newcomer and rules.edit else frame)
        self.dropped += [frame.origin for index, frame in enumerate(candidates) if index not in chosen]
        self.frames = sink + sorted(kept, key=lambda frame: frame.origin) + recent
        self.pending = []

    def regions(self, incoming: int) -> tuple[list[Frame], list[Frame], list[Frame]]:
        """Sink, memory and recent of a full cache, of which `incoming` frames are still to come."""
        sink = self.layout.sink
        memory = sink + self.layout.memory
        assert len(self.frames) + incoming == self.layout.budget
        return self.frames[:sink], self.frames[sink:memory], self.frames[memory:]

    def position(self, rank: int, frame: Frame) -> int:
        """Where a frame's key stands: its rank in the view, or its index in the video."""
        return rank if self.positions == "block-relative" else frame.origin

    def attend(self, query: Tensor, chunk: list[Frame]) -> Tensor:
        """Dense attention of the chunk's queries `[F, T, H, D]` over the frames and the chunk itself."""
        view = self.frames + chunk
        keys = [rotate(frame.key, self.position(rank, frame), self.grid) for rank, frame in enumerate(view)]
        queries = [
            rotate(query[i], self.position(len(self.frames) + i, frame), self.grid)
            for i, frame in enumerate(chunk)
        ]
        return dense_attention(
            torch.cat(queries), torch.cat(keys), torch.cat([frame.value for frame in view])
        )


class Oracle:
    """The naive cache of a whole rollout; attends like the engine, so a transformer can run on it.

    Args:
        layers: transformer layers.
        batch: samples.
        layout: the regions.
        positions: key positions.
        grid: token rows and columns of a frame.
        rules: the policy.
    """

    def __init__(
        self, layers: int, batch: int, layout: Layout, positions: Positions, grid: Grid, rules: Rules
    ) -> None:
        self.rules = rules
        self.cells = [
            [Cell(layer, row, layout, positions, grid) for row in range(batch)] for layer in range(layers)
        ]
        self.written = 0
        self.incoming = 0
        self.context = False

    def begin(self, frames: int) -> None:
        self.incoming = frames
        for cells in self.cells:
            for cell in cells:
                cell.make_room(frames, self.rules)

    def flush(self, newest: int) -> None:
        """Let go of all but the sink and so many of the newest frames."""
        for cell in [cell for cells in self.cells for cell in cells]:
            sink, rest = cell.frames[: cell.layout.sink], cell.frames[cell.layout.sink :]
            cell.frames = sink + rest[-newest:]
            cell.dropped += [frame.origin for frame in rest[:-newest]]

    def rewrite(self, newer: int, tensors: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Give one frame, `newer` before the newest, other keys and values."""
        for cell in [cell for cells in self.cells for cell in cells]:
            _, key, value = (x[cell.row].double() for x in tensors[cell.layer])
            cell.frames[-1 - newer] = Frame(cell.frames[-1 - newer].origin, key, value)

    def commit(self) -> None:
        self.context = True

    def end(self) -> None:
        self.context = False
        self.written += self.incoming

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Like `CacheEngine.attend`: tensors are `[B, F*T, H, D]`."""
        out = []
        for row, cell in enumerate(self.cells[layer]):
            q, k, v = (x[row].double().unflatten(0, (self.incoming, -1)) for x in (query, key, value))
            chunk = [Frame(self.written + i, k[i], v[i]) for i in range(self.incoming)]
            if self.context:
                cell.recall(self.incoming, q.flatten(0, 1), self.rules)
            out.append(cell.attend(q, chunk))
            if self.context:
                cell.frames += chunk
        return torch.stack(out).to(query.dtype)

    def snapshot(self) -> tuple[list[list[Cell]], int]:
        """A copy of the state between chunks."""
        return copy.deepcopy(self.cells), self.written

    def restore(self, state: tuple[list[list[Cell]], int]) -> None:
        """Bring back what `snapshot` returned."""
        cells, self.written = state
        self.cells = copy.deepcopy(cells)
        self.context = False
