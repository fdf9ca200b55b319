"""Checks: at once when strict, one flush late when deferred."""

from __future__ import annotations

import math

import pytest
import torch

from tetherflow.cache.checks import Checks
from tetherflow.errors import TetherflowError

YES, NO = torch.tensor(1.0), torch.tensor(math.nan)


def failing(name: str) -> TetherflowError:
    return TetherflowError(name)


def test_strict_raises_on_the_spot() -> None:
    checks = Checks(strict=True)
    checks.finite(YES, lambda: failing("fine"))
    with pytest.raises(TetherflowError, match="broken"):
        checks.finite(NO, lambda: failing("broken"))
    checks.flush()


def test_deferred_raises_one_flush_later() -> None:
    checks = Checks(strict=False)
    checks.finite(NO, lambda: failing("broken"))
    checks.flush()
    checks.finite(YES, lambda: failing("fine"))
    with pytest.raises(TetherflowError, match="broken"):
        checks.flush()


def test_deferred_reports_once_and_keeps_what_came_since() -> None:
    checks = Checks(strict=False)
    checks.finite(NO, lambda: failing("first"))
    checks.flush()
    checks.finite(NO, lambda: failing("second"))
    with pytest.raises(TetherflowError, match="first"):
        checks.flush()
    checks.flush()
    with pytest.raises(TetherflowError, match="second"):
        checks.flush()
    checks.flush()


def test_deferred_reports_the_first_that_failed() -> None:
    checks = Checks(strict=False)
    for holds, name in ((YES, "one"), (NO, "two"), (NO, "three")):
        checks.finite(holds, lambda name=name: failing(name))
    checks.flush()
    with pytest.raises(TetherflowError, match="two"):
        checks.flush()


def test_drain_waits_for_what_is_on_its_way() -> None:
    checks = Checks(strict=False)
    checks.finite(NO, lambda: failing("broken"))
    checks.drain()  # nothing was sent yet
    checks.flush()
    with pytest.raises(TetherflowError, match="broken"):
        checks.drain()
    checks.drain()


def test_condition_that_failed_is_kept_although_its_tensor_changes() -> None:
    """Conditions are copied when they are sent, so a reused buffer cannot clear them."""
    checks = Checks(strict=False)
    flag = NO.clone()
    checks.finite(flag, lambda: failing("broken"))
    checks.flush()
    flag.fill_(1)
    with pytest.raises(TetherflowError, match="broken"):
        checks.drain()


def accepts(check: str, *arguments: object, strict: bool) -> bool:
    """Whether a check finds nothing wrong."""
    checks = Checks(strict=strict)
    try:
        getattr(checks, check)(*arguments, lambda: failing("broken"))
        checks.flush()
        checks.drain()
    except TetherflowError:
        return False
    return True


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_element_is_found_wherever_it_is(dtype: torch.dtype, bad: float, strict: bool) -> None:
    x = torch.finfo(dtype).max * torch.tensor([-1.0, 1.0], dtype=dtype).repeat(50)
    assert accepts("finite", x, strict=strict)
    for place in range(len(x)):
        broken = x.clone()
        broken[place] = bad
        assert not accepts("finite", broken, strict=strict)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(("numbers", "fine"), [([0, 4], True), ([-1, 4], False), ([0, 5], False), ([], True)])
def test_bounds_themselves_are_out_of_bounds(numbers: list[int], fine: bool, strict: bool) -> None:
    assert accepts("between", torch.tensor([numbers], dtype=torch.int64), -1, 5, strict=strict) is fine


@pytest.mark.parametrize("strict", [True, False])
def test_repetition_is_found_in_any_row(strict: bool) -> None:
    assert accepts("distinct", torch.tensor([[0, 1, 2], [2, 3, 9]]), strict=strict)
    assert not accepts("distinct", torch.tensor([[0, 1, 2], [2, 9, 9]]), strict=strict)
    assert accepts("distinct", torch.tensor([[7], [7]]), strict=strict)


def test_conditions_on_several_types_are_reported_in_order() -> None:
    """They travel by type, but the first that failed is the one that was first required."""
    checks = Checks(strict=False)
    checks.finite(torch.zeros(3, dtype=torch.bfloat16), lambda: failing("one"))
    checks.between(torch.tensor([9]), 0, 5, lambda: failing("two"))
    checks.finite(torch.full((3,), math.nan, dtype=torch.bfloat16), lambda: failing("three"))
    checks.finite(NO, lambda: failing("four"))
    checks.flush()
    with pytest.raises(TetherflowError, match="two"):
        checks.drain()
