"""Compiled functions: a kernel for each shape, one for all of Python's numbers, and no broken graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tetherflow.cache import fusing
from tetherflow_policies.tame import blend


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """What is compiled, by a compiler that leaves it as it is."""
    found: Counter[str] = Counter()
    compiler = torch.compile

    def counted(function: Callable[..., Any], **options: Any) -> Any:
        def backend(graph: torch.fx.GraphModule, example: list[Any]) -> Any:
            shapes = [size for x in example if isinstance(x, Tensor) for size in x.shape]
            found["any size" if any(isinstance(size, torch.SymInt) for size in shapes) else "one size"] += 1
            return graph

        return compiler(function, backend=backend)

    monkeypatch.setattr(torch, "compile", counted)
    fusing._compiled.cache_clear()
    yield found
    fusing._compiled.cache_clear()


def doubled(x: Tensor) -> Tensor:
    return x * 2


def scaled(x: Tensor, by: float) -> Tensor:
    return x * by


def test_every_shape_has_a_kernel_of_its_own(graphs: Counter[str]) -> None:
    for count in (1, 14, 18, 3, 14, 1):
        assert torch.equal(fusing.compiled(doubled)(torch.ones(1, count)), torch.full((1, count), 2.0))
    assert graphs == {"one size": 4}


def test_a_shape_that_lies_otherwise_in_memory_has_one_too(graphs: Counter[str]) -> None:
    wide, narrow = torch.ones(2, 30), torch.ones(2, 20)
    for x in (wide[:, :3], wide[:, :14], narrow[:, :3], narrow[:, :14]):
        assert torch.equal(fusing.compiled(doubled)(x), x + x)
    assert graphs == {"one size": 4}


def test_options_are_those_that_the_compiler_knows() -> None:
    """Torch looks at them at once, before anything is compiled."""
    fusing._compiled.cache_clear()
    assert callable(fusing.compiled(doubled))
    fusing._compiled.cache_clear()


def test_numbers_that_move_share_a_kernel(graphs: Counter[str]) -> None:
    for by in (0.1, 0.2, 0.3, 0.4, 0.5):
        assert torch.equal(fusing.compiled(scaled)(torch.ones(3), by=by), torch.full((3,), by))
    assert graphs["one size"] <= 2


def test_tame_in_place_is_one_graph_wherever_newcomers_wait(graphs: Counter[str]) -> None:
    for batch in (1, 2):
        waiting = torch.randn(batch, 24, 5, 2, 4)[:, 21:]
        own = (waiting.mean(2), waiting.var(2))
        trusted = (torch.zeros(batch, 2, 4), torch.ones(batch, 2, 4))
        expected = waiting.clone()
        blend(expected, *own, *trusted, 0.6)
        fusing.compiled(blend)(waiting, *own, *trusted, 0.6)
        torch.testing.assert_close(waiting, expected)
    assert graphs == {"one size": 2}
