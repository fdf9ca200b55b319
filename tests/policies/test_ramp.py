"""The ramp against its formula."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given
from pydantic import ValidationError

from tetherflow_policies.ramp import Ramp

values = st.floats(-10, 10)


def ramp(**options: object) -> Ramp:
    return Ramp(Ramp.Options.model_validate(options))


@given(first=values, last=values, start=st.floats(0, 50), seconds=st.floats(0.1, 100), t=st.floats(0, 200))
def test_value_is_the_formula(first: float, last: float, start: float, seconds: float, t: float) -> None:
    schedule = ramp(**{"from": first, "to": last}, start=start, seconds=seconds)
    share = 0.0 if t <= start else 1.0 if t >= start + seconds else (t - start) / seconds
    assert schedule.at(t) == pytest.approx((1 - share) * first + share * last, abs=1e-9)
    low, high = schedule.bounds
    assert (low, high) == (min(first, last), max(first, last))
    assert low - 1e-9 <= schedule.at(t) <= high + 1e-9


def test_start_may_be_written_as_in_prompts_over_time() -> None:
    assert ramp(**{"from": 0, "to": 1}, start="10s", seconds=5).at(12.5) == 0.5


@pytest.mark.parametrize(
    "wrong", [{"seconds": 0}, {"seconds": float("inf")}, {"to": float("nan")}, {"steps": 3}]
)
def test_what_is_no_ramp_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        ramp(**({"from": 0, "to": 1, "seconds": 5} | wrong))
