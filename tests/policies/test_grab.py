"""GRAB against the published functions' recorded results, and against the formulas written out in loops."""

from __future__ import annotations

import json
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from tests.cache import oracle as naive
from tests.cache.oracle import Frame
from tests.golden_traces import GOLDEN
from tetherflow import Candidates
from tetherflow.errors import PipelineError
from tetherflow.pipeline import Pipeline
from tetherflow_policies.grab import Relevance, TemporalDiversity, TopM
from tetherflow_policies.recall_window import RecallWindow

UNITS = load_file(GOLDEN / "units.safetensors")
SETTINGS = json.loads((GOLDEN / "golden.json").read_text())["units"]


def candidates(keys: Tensor, query: Tensor, origins: list[int], capacity: int) -> Candidates:
    """Candidates with keys `[B, N, T, H, D]` and the context pass's query `[B, L, H, D]`."""
    return Candidates(
        layer=0,
        chunk=0,
        capacity=capacity,
        residents=capacity,
        origins=torch.tensor(origins).expand(keys.shape[0], -1),
        mean_keys=keys.mean(dim=2),
        mean_query=query.mean(dim=1),
        read_keys=lambda: keys,
        read_values=lambda: keys,
    )


def golden_candidates() -> Candidates:
    keys = UNITS["k"].unflatten(1, (-1, SETTINGS["tokens_per_frame"]))
    return candidates(keys, UNITS["q"], UNITS["frame_indices"].tolist(), SETTINGS["memory_size"])


def relevance(temperature: float = 1.0) -> Relevance:
    return Relevance(Relevance.Options(temperature=temperature), name="relevance")


def diversity(alpha: float = 0.35) -> TemporalDiversity:
    return TemporalDiversity(TemporalDiversity.Options(alpha=alpha), name="temporal-diversity")


def test_relevance_is_the_published_one() -> None:
    mass = relevance(SETTINGS["score_temperature"]).score(golden_candidates())
    torch.testing.assert_close(mass, UNITS["attention_mass"], atol=1e-6, rtol=1e-5)


def test_diversity_is_the_published_one() -> None:
    scores = {"relevance": UNITS["attention_mass"]}
    alpha = SETTINGS["alpha"]
    extra = diversity(alpha).score(golden_candidates(), scores)
    torch.testing.assert_close(extra / alpha, UNITS["temporal_diversity"], atol=1e-6, rtol=1e-5)
    total = scores["relevance"] + extra
    torch.testing.assert_close(total[0], UNITS["score"], atol=1e-6, rtol=1e-5)


def test_choice_is_the_published_one() -> None:
    shown = golden_candidates()
    chosen = TopM().select(shown, UNITS["score"][None])
    assert sorted(chosen[0].tolist()) == UNITS["kept"].tolist()


shapes = st.tuples(st.integers(2, 6), st.integers(1, 4), st.integers(1, 3), st.sampled_from([2, 4, 6]))


@settings(max_examples=40)
@given(
    shape=shapes,
    batch=st.integers(1, 2),
    query_tokens=st.integers(1, 7),
    temperature=st.sampled_from([0.05, 0.5, 1.0, 3.0]),
    alpha=st.sampled_from([0.0, 0.35, 1.0, 5.0]),
    gaps=st.lists(st.integers(1, 40), min_size=6, max_size=6),
    seed=st.integers(0, 1000),
)
def test_scores_are_those_of_the_full_logits(
    shape: tuple[int, int, int, int],
    batch: int,
    query_tokens: int,
    temperature: float,
    alpha: float,
    gaps: list[int],
    seed: int,
) -> None:
    """From pooled queries and keys comes what the mean over all materialised logits gives."""
    count, tokens, heads, head_dim = shape
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(batch, count, tokens, heads, head_dim, generator=generator)
    query = torch.randn(batch, query_tokens, heads, head_dim, generator=generator)
    origins = [sum(gaps[: i + 1]) for i in range(count)]
    shown = candidates(keys, query, origins, 1)
    mass = relevance(temperature).score(shown)
    extra = diversity(alpha).score(shown, {"relevance": mass})
    for row in range(batch):
        frames = [
            Frame(origin, key.double(), key.double()) for origin, key in zip(origins, keys[row], strict=True)
        ]
        wanted = naive.relevance(frames, query[row], temperature)
        assert mass[row].tolist() == pytest.approx(wanted, abs=1e-5)
        assert extra[row].tolist() == pytest.approx(naive.diversity(wanted, origins, alpha), abs=1e-5)


@given(shape=shapes, seed=st.integers(0, 1000))
def test_relevance_is_a_share(shape: tuple[int, int, int, int], seed: int) -> None:
    """Relevance is positive and sums to 1 over the candidates."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(2, *shape, generator=generator)
    query = torch.randn(2, 3, *shape[2:], generator=generator)
    mass = relevance().score(candidates(keys, query, list(range(shape[0])), 1))
    assert bool((mass >= 0).all())
    torch.testing.assert_close(mass.sum(dim=1), torch.ones(2))


@given(origins=st.lists(st.integers(0, 500), min_size=2, max_size=8, unique=True), seed=st.integers(0, 100))
def test_diversity_depends_on_distances_alone(origins: list[int], seed: int) -> None:
    """Shifting every frame in time changes nothing, and each reward lies between 0 and α."""
    origins = sorted(origins)
    keys = torch.zeros(1, len(origins), 1, 1, 2)
    mass = torch.rand(1, len(origins), generator=torch.Generator().manual_seed(seed)).softmax(dim=1)
    here, later = (
        diversity(0.5).score(
            candidates(keys, keys[:, 0], [o + shift for o in origins], 1), {"relevance": mass}
        )
        for shift in (0, 1000)
    )
    torch.testing.assert_close(here, later)
    assert bool(((here >= 0) & (here <= 0.5)).all())


def test_frame_that_an_attended_neighbour_stands_in_for_is_rewarded_less() -> None:
    keys = torch.zeros(1, 3, 1, 1, 2)
    shown = candidates(keys, keys[:, 0], [10, 11, 40], 1)
    extra = diversity(1.0).score(shown, {"relevance": torch.tensor([[0.8, 0.1, 0.1]])})[0]
    sigma = 31 / 2
    assert extra.tolist() == pytest.approx(
        [1 - 0.1 * math.exp(-1 / sigma), 1 - 0.8 * math.exp(-1 / sigma), 1 - 0.8 * math.exp(-30 / sigma)]
    )


def test_diversity_without_relevance_says_what_to_do() -> None:
    relevance = Relevance(name="relevance")
    with pytest.raises(PipelineError, match="builds on 'relevance', which must come before it"):
        Pipeline(RecallWindow(), [diversity(), relevance], TopM())
    Pipeline(RecallWindow(), [relevance, diversity()], TopM())


@given(count=st.integers(1, 9), batch=st.integers(1, 3), data=st.data())
def test_top_m_keeps_the_best(count: int, batch: int, data: st.DataObject) -> None:
    """The worst that is kept scores at least as much as the best that is not; nothing is kept twice."""
    capacity = data.draw(st.integers(1, count))
    score = torch.tensor(
        data.draw(st.lists(st.permutations(range(count)), min_size=batch, max_size=batch))
    ).float()
    keys = torch.zeros(batch, count, 1, 1, 2)
    chosen = TopM().select(candidates(keys, keys[:, 0], list(range(count)), capacity), score)
    assert chosen.shape == (batch, capacity)
    for row in range(batch):
        kept = chosen[row].tolist()
        assert len(set(kept)) == capacity
        assert sorted(score[row, kept].tolist()) == list(range(count - capacity, count))


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValidationError, match="temperature"):
        Relevance.Options(temperature=temperature)


def test_alpha_must_not_be_negative() -> None:
    with pytest.raises(ValidationError, match="alpha"):
        TemporalDiversity.Options(alpha=-0.1)


def test_defaults_are_the_papers() -> None:
    assert Relevance().options.temperature == 1.0
    assert TemporalDiversity().options.alpha == 0.35
