"""One sample of a batch, shown alone, is what the engine shows of it when it is alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from tetherflow import Layout
from tetherflow.cache.one_sample import one_sample
from tetherflow.errors import TetherflowError
from tetherflow.testing.strategies import Rollout, last_shown
from tetherflow.testing.watch import tensors_in

ROLLOUT = Rollout(Layout(1, 3, 3), (3,) * 5, seeds=(1, 2, 3))


def shown(hook: str, argument: str, row: int | None = None) -> Any:
    rollout = ROLLOUT if row is None else attrs.evolve(ROLLOUT, seeds=(ROLLOUT.seeds[row],))
    return last_shown(rollout, hook, argument)


def everything(given: Any) -> dict[str, Tensor]:
    """All tensors, those read from the cache included."""
    found = dict(tensors_in(given, "given"))
    found |= dict(tensors_in(given.newcomers, "newcomers"))
    for name in ("mean_keys", "mean_query"):
        if hasattr(given, name):
            found[name] = getattr(given, name)
    if hasattr(given, "read_slots"):
        slots = given.read_slots()
        ranks = torch.tensor([[2, 0]])
        found |= {"keys": given.read_keys(), "values": given.read_values(), "query": slots.query}
        found |= {"origins": slots.origins, "slot keys": slots.read_keys(ranks)}
        stored, places = slots.stored_keys
        found["stored keys"] = stored[torch.arange(len(places))[:, None], places]
        found |= {"slot values": slots.read_values(range(1, 3)), "like": slots.like}
        found |= dict(tensors_in(slots.statistics([0, 2]), "slot statistics"))
        found["turned"] = slots.rotate(found["slot keys"], ranks.float(), torch.zeros_like(ranks))
    return found


@pytest.mark.parametrize(("hook", "argument"), [("score", "candidates"), ("edit", "draft")])
@pytest.mark.parametrize("row", [0, 2])
def test_a_sample_is_shown_as_if_alone(hook: str, argument: str, row: int) -> None:
    whole, alone = shown(hook, argument), shown(hook, argument, row)
    one = one_sample(whole, row)
    assert one.sample == row
    assert whole.sample is alone.sample is None
    found, expected = everything(one), everything(alone)
    found = {name: x for name, x in found.items() if name in expected}  # metadata of the reader aside
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, msg=lambda text, name=name: f"{name}: {text}")  # type: ignore[misc]


@pytest.mark.parametrize("row", [0, 2])
def test_queries_of_a_sample_are_made_when_they_are_asked_for(row: int) -> None:
    whole, made = shown("score", "candidates"), list[str]()

    def makes(name: str) -> Callable[[], Tensor]:
        found = getattr(whole, name)
        return lambda: (made.append(name), found)[1]

    lazy = attrs.evolve(whole, query=makes("query"), mean_query=makes("mean_query"))
    one = one_sample(lazy, row)
    assert not made
    assert torch.equal(one.query, whole.query[row : row + 1])
    assert torch.equal(one.mean_query, whole.mean_query[row : row + 1])
    assert made == ["query", "mean_query"]


def test_a_sample_has_no_queries_where_the_batch_has_none() -> None:
    one = one_sample(attrs.evolve(shown("score", "candidates"), query=None, mean_query=None), 1)
    assert one._query is one._mean_query is None
    with pytest.raises(TetherflowError, match="there is no query yet"):
        _ = one.query


def test_what_is_no_batch_comes_back_as_it_is() -> None:
    score = torch.arange(6.0).view(3, 2)
    assert torch.equal(one_sample({"relevance": score}, 1)["relevance"], score[1:2])
    assert one_sample(4, 1) == 4
