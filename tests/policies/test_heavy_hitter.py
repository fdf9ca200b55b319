"""H2O against attention written out query by query, in a cache that is a dictionary of frames."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from pydantic import ValidationError
from torch import Tensor

from tests.cache.oracle import margin, top
from tetherflow import Candidates, Layout, Slots, When
from tetherflow.cache import CacheEngine
from tetherflow.pipeline import Pipeline
from tetherflow.testing import Model, run, write_script
from tetherflow_policies.grab import TopM
from tetherflow_policies.heavy_hitter import HeavyHitter
from tetherflow_policies.recall_window import RecallWindow
from tetherflow_policies.tame import Tame

Hit = dict[int, tuple[Tensor, float]]
"""Key `[T, H, D]` and collected attention of every frame held, by origin."""


def heavy_hitter(**options: int | float | None) -> HeavyHitter:
    return HeavyHitter(HeavyHitter.Options.model_validate(options), name="heavy-hitter")


def collect(held: Hit, queries: Tensor) -> Hit:
    """Add the attention that queries `[L, H, D]` pay to each frame: its share of each softmax, averaged."""
    keys = torch.cat([key.double() for key, _ in held.values()])
    total = torch.zeros(len(keys), dtype=torch.float64)
    for query in queries.double():
        for head, q in enumerate(query):
            logits = torch.stack([q @ k for k in keys[:, head]]) / len(q) ** 0.5
            total += logits.softmax(dim=0) / queries.shape[0] / queries.shape[1]
    shares = total.unflatten(0, (len(held), -1)).sum(dim=1).tolist()
    return {
        origin: (key, sofar + share)
        for (origin, (key, sofar)), share in zip(held.items(), shares, strict=True)
    }


def make_room(held: Hit, incoming: int, layout: Layout) -> tuple[Hit, float]:
    """Keep the hardest hit of memory and what leaves recent; also how near a call it was."""
    leave = len(held) + incoming - layout.budget
    if leave <= 0:
        return held, 1.0
    origins = list(held)
    compete = origins[layout.sink : layout.sink + layout.memory + leave]
    scores = [held[origin][1] for origin in compete]
    kept = [compete[i] for i in top(scores, layout.memory)]
    stay = [origin for origin in origins if origin not in compete or origin in kept]
    return {origin: held[origin] for origin in stay}, margin(scores, layout.memory)


def collected(engine: CacheEngine, layer: int) -> Tensor:
    """What each unit held has collected, `[B, held]`, in time order."""
    store = engine.layers[layer]
    return store.book.metadata(store.order)["attention"]


@settings(max_examples=20)
@given(
    frames=st.lists(st.integers(1, 3), min_size=4, max_size=7),
    layout=st.builds(Layout, st.integers(0, 2), st.integers(1, 3), st.integers(3, 4)),
    when=st.sampled_from(["begin", "first-pass", "commit"]),
    seed=st.integers(0, 1000),
)
def test_what_has_drawn_most_attention_stays(
    frames: list[int], layout: Layout, when: When, seed: int
) -> None:
    """Whenever memory is decided: what counts was collected in the chunks before."""
    evict = RecallWindow(RecallWindow.Options(when=when))
    model = Model(layers=2, heads=2, grid=(1, 2))
    engine = model.engine(layout, Pipeline(evict, [heavy_hitter(queries=None)], TopM()))
    script = write_script(model, frames, seeds=[seed])
    held: list[Hit] = [{} for _ in range(model.layers)]
    written = 0
    for chunk in script:
        run(engine, [chunk])
        for layer in range(model.layers):
            query, key, _ = (x[0] for x in chunk.clean[layer])
            stay, nearness = make_room(held[layer], chunk.frames, layout)
            if nearness < 1e-5:
                return  # rounding decides
            new = key.unflatten(0, (chunk.frames, -1))
            held[layer] = collect(stay | {written + i: (one, 0.0) for i, one in enumerate(new)}, query)
            assert engine.origins()[layer, 0].tolist() == list(held[layer])
            wanted = [share for _, share in held[layer].values()]
            assert collected(engine, layer)[0].tolist() == pytest.approx(wanted, abs=1e-5)
        written += chunk.frames


@pytest.mark.parametrize("unit", ["frame", "token", 1])
def test_each_chunk_shares_out_one(unit: str | int) -> None:
    model = Model(grid=(2, 2))
    policy = Pipeline(RecallWindow(), [heavy_hitter(queries=3)], TopM())
    engine = model.engine(Layout(1, 2, 6), policy, unit=unit)  # type: ignore[arg-type]
    for count, chunk in enumerate(write_script(model, [3, 3, 3]), start=1):
        run(engine, [chunk])
        for layer in range(model.layers):
            assert float(collected(engine, layer).sum()) == pytest.approx(count, rel=1e-5)


def test_statistics_are_kept_only_beside_a_stage_that_reads_them() -> None:
    for edit, kept in ((), False), ([Tame()], True):
        policy = Pipeline(RecallWindow(), [heavy_hitter()], TopM(), edit)
        store = Model().engine(Layout(1, 2, 4), policy).layers[0]
        assert (store.book.moments is not None) == kept


def test_queries_that_are_measured_are_spread_evenly() -> None:
    """Four of twelve queries: each one's attention is that of a chunk that has just these."""
    query = torch.randn(1, 3, 4, 2, 6)

    def shares(query: Tensor, queries: int | None) -> Tensor:
        revision = heavy_hitter(queries=queries).revise(slots(query))
        return revision.metadata["attention"]

    chosen = query.flatten(1, 2)[:, [0, 3, 6, 9]][:, None]
    torch.testing.assert_close(shares(query, 4), shares(chosen, None))
    torch.testing.assert_close(shares(query, 12), shares(query, None))
    torch.testing.assert_close(shares(query, 99), shares(query, None))


def slots(query: Tensor) -> Slots:
    """A layer of five units that have collected nothing, as after a context pass."""

    class Reader:
        def stored_keys(self) -> tuple[Tensor, Tensor]:
            keys = torch.arange(40.0).sin().view(1, 5, 4, 1, 2).repeat(1, 1, 1, 2, 3)
            return keys, torch.tensor([[0, 3, 4, 1, 2]])

    return Slots(
        0,
        0,
        Layout(0, 2, 3),
        3,
        torch.arange(5)[None],
        metadata={"attention": torch.zeros(1, 5)},
        reader=Reader(),  # type: ignore[arg-type]  # it reads nothing else
        query=query,
    )


def test_score_is_what_was_collected_by_weight() -> None:
    noted = torch.tensor([[0.5, 2.0, 1.0]])
    keys = torch.zeros(1, 3, 1, 1, 2)
    shown = Candidates(
        layer=0,
        chunk=0,
        capacity=1,
        residents=1,
        origins=torch.arange(3)[None],
        metadata={"attention": noted},
        mean_keys=keys[:, :, 0],
        read_keys=lambda: keys,
        read_values=lambda: keys,
    )
    assert torch.equal(heavy_hitter(weight=0.5).score(shown), noted / 2)


@pytest.mark.parametrize("options", [{"weight": 0}, {"queries": 0}])
def test_options_must_be_positive(options: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        heavy_hitter(**options)
