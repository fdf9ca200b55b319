"""Checks: at once when strict, one flush late when deferred."""

from __future__ import annotations

import math

import pytest
import torch

from tetherflow.cache.checks import Checks, is_finite
from tetherflow.errors import TetherflowError

YES, NO = torch.tensor(True), torch.tensor(False)


def failing(name: str) -> TetherflowError:
    return TetherflowError(name)


def test_strict_raises_on_the_spot() -> None:
    checks = Checks(strict=True)
    checks.require(YES, lambda: failing("fine"))
    with pytest.raises(TetherflowError, match="broken"):
        checks.require(NO, lambda: failing("broken"))
    checks.flush()


def test_deferred_raises_one_flush_later() -> None:
    checks = Checks(strict=False)
    checks.require(NO, lambda: failing("broken"))
    checks.flush()
    checks.require(YES, lambda: failing("fine"))
    with pytest.raises(TetherflowError, match="broken"):
        checks.flush()


def test_deferred_reports_once_and_keeps_what_came_since() -> None:
    checks = Checks(strict=False)
    checks.require(NO, lambda: failing("first"))
    checks.flush()
    checks.require(NO, lambda: failing("second"))
    with pytest.raises(TetherflowError, match="first"):
        checks.flush()
    checks.flush()
    with pytest.raises(TetherflowError, match="second"):
        checks.flush()
    checks.flush()


def test_deferred_reports_the_first_that_failed() -> None:
    checks = Checks(strict=False)
    for holds, name in ((YES, "one"), (NO, "two"), (NO, "three")):
        checks.require(holds, lambda name=name: failing(name))
    checks.flush()
    with pytest.raises(TetherflowError, match="two"):
        checks.flush()


def test_drain_waits_for_what_is_on_its_way() -> None:
    checks = Checks(strict=False)
    checks.require(NO, lambda: failing("broken"))
    checks.drain()  # nothing was sent yet
    checks.flush()
    with pytest.raises(TetherflowError, match="broken"):
        checks.drain()
    checks.drain()


def test_condition_that_failed_is_kept_although_its_tensor_changes() -> None:
    """Conditions are copied when they are sent, so a reused buffer cannot clear them."""
    checks = Checks(strict=False)
    flag = torch.tensor(False)
    checks.require(flag, lambda: failing("broken"))
    checks.flush()
    flag.fill_(True)
    with pytest.raises(TetherflowError, match="broken"):
        checks.drain()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_element_is_found_wherever_it_is(dtype: torch.dtype, bad: float) -> None:
    x = torch.finfo(dtype).max * torch.tensor([-1.0, 1.0], dtype=dtype).repeat(50)
    assert bool(is_finite(x))
    for place in range(len(x)):
        broken = x.clone()
        broken[place] = bad
        assert not bool(is_finite(broken))
