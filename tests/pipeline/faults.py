"""What a faulty plugin may do, stage by stage, and what the error must say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch

from tetherflow import Draft, Eviction
from tetherflow.errors import LayoutError


@attrs.frozen
class Fault:
    """What a faulty plugin does, and what the error must say.

    Attributes:
        act: the body of the hook.
        text: pattern of the message.
        deferred: whether only a tensor's contents show it, so that deferred checks report it a chunk late.
    """

    act: Callable[..., Any]
    text: str
    deferred: bool = False


def boom(_: object) -> None:
    raise ZeroDivisionError("by hand")


def complain(_: object) -> None:
    raise LayoutError("told on purpose")


RAISING = {
    "raises": Fault(boom, "raised ZeroDivisionError: by hand"),
    "raises-ours": Fault(complain, "told on purpose"),
}

EVICT_FAULTS = RAISING | {
    "none": Fault(lambda slots: None, "returned nothing; expected an Eviction"),
    "a-tensor": Fault(
        lambda slots: torch.zeros(1, 3), r"returned torch.float32 \[1, 3\] on cpu; expected an Eviction"
    ),
    "listed-eviction": Fault(lambda slots: [Eviction(range(1, 4))], "returned a list; expected an Eviction"),
    "sink": Fault(
        lambda slots: Eviction(range(3)),
        r"evicts range\(0, 3\); ranks must lie from 1, past the sink, below 6",
    ),
    "beyond": Fault(lambda slots: Eviction(range(4, 7)), r"evicts range\(4, 7\); ranks must lie from 1"),
    "negative": Fault(lambda slots: Eviction(range(-3, 0)), r"evicts range\(-3, 0\); ranks must lie from 1"),
    "too-few": Fault(lambda slots: Eviction(range(1, 3)), r"returned range\(1, 3\); expected 3 ranks"),
    "too-many": Fault(lambda slots: Eviction(range(1, 5)), r"returned range\(1, 5\); expected 3 ranks"),
    "backwards": Fault(lambda slots: Eviction(range(3, 0, -1)), "expected 3 ranks in ascending order"),
    "strided": Fault(lambda slots: Eviction(range(0, 6, 2)), "expected 3 ranks in ascending order, step 1"),
    "elsewhere": Fault(
        lambda slots: Eviction(range(1, 4), to="memory"),
        "sends units to 'memory' but declares destination 'drop'",
    ),
    "python-list": Fault(lambda slots: Eviction([1, 2, 3]), r"returned a list; expected integers \[2, 3\]"),  # type: ignore[arg-type]
    "shape": Fault(
        lambda slots: Eviction(torch.tensor([1, 2, 3])),
        r"returned torch.int64 \[3\] on cpu; expected integers \[2, 3\]",
    ),
    "count": Fault(
        lambda slots: Eviction(torch.tensor([[1, 2]] * 2)), r"returned torch.int64 \[2, 2\] on cpu"
    ),
    "floats": Fault(
        lambda slots: Eviction(torch.tensor([[1.0, 2, 3]] * 2)), r"returned torch.float32 \[2, 3\]"
    ),
    "bools": Fault(
        lambda slots: Eviction(torch.ones(2, 3, dtype=torch.bool)), r"returned torch.bool \[2, 3\]"
    ),
    "device": Fault(
        lambda slots: Eviction(torch.ones(2, 3, dtype=torch.int64, device="meta")),
        r"returned torch.int64 \[2, 3\] on meta; expected integers \[2, 3\] on cpu",
    ),
    "tensor-sink": Fault(
        lambda slots: Eviction(torch.tensor([[1, 2, 3], [2, 1, 0]])),
        "evicts a rank out of range",
        deferred=True,
    ),
    "tensor-beyond": Fault(
        lambda slots: Eviction(torch.tensor([[6, 2, 3], [1, 2, 3]])),
        "evicts a rank out of range; ranks must lie from 1, past the sink, below 6",
        deferred=True,
    ),
    "tensor-negative": Fault(
        lambda slots: Eviction(torch.tensor([[1, 2, 3], [1, -1, 3]])),
        "evicts a rank out of range",
        deferred=True,
    ),
    "tensor-twice": Fault(
        lambda slots: Eviction(torch.tensor([[1, 2, 3], [4, 2, 4]])), "evicts a unit twice", deferred=True
    ),
}

SCORE_FAULTS = RAISING | {
    "none": Fault(lambda candidates: None, r"returned nothing; expected floating point \[2, 5\]"),
    "number": Fault(lambda candidates: 1.0, "returned a float; expected floating point"),
    "python-list": Fault(lambda candidates: [[0.0] * 5] * 2, "returned a list; expected floating point"),
    "listed-tensor": Fault(
        lambda candidates: [torch.zeros(2, 5)], "returned a list; expected floating point"
    ),
    "shape": Fault(
        lambda candidates: torch.zeros(5), r"returned torch.float32 \[5\] on cpu; expected floating point"
    ),
    "too-few": Fault(lambda candidates: torch.zeros(2, 4), r"returned torch.float32 \[2, 4\] on cpu"),
    "integers": Fault(
        lambda candidates: candidates.origins, r"returned torch.int64 \[2, 5\] on cpu; expected floating"
    ),
    "complex": Fault(lambda candidates: torch.zeros(2, 5, dtype=torch.complex64), "returned torch.complex64"),
    "device": Fault(
        lambda candidates: torch.zeros(2, 5, device="meta"), "returned a score on meta; expected cpu"
    ),
    "nan": Fault(
        lambda candidates: torch.zeros(2, 5).index_fill(1, torch.tensor([3]), float("nan")),
        "returned a score that is not finite",
        deferred=True,
    ),
    "infinite": Fault(
        lambda candidates: torch.full((2, 5), -float("inf")),
        "returned a score that is not finite",
        deferred=True,
    ),
}

SELECT_FAULTS = RAISING | {
    "none": Fault(lambda candidates: None, r"returned nothing; expected integers \[2, 2\]"),
    "python-list": Fault(lambda candidates: [[0, 1], [0, 1]], r"returned a list; expected integers \[2, 2\]"),
    "listed-tensor": Fault(
        lambda candidates: [torch.tensor([[0, 1]] * 2)], "returned a list; expected integers"
    ),
    "shape": Fault(
        lambda candidates: torch.tensor([0, 1]), r"returned torch.int64 \[2\] on cpu; expected integers"
    ),
    "too-few": Fault(
        lambda candidates: torch.zeros(2, 1, dtype=torch.int64), r"returned torch.int64 \[2, 1\]"
    ),
    "too-many": Fault(lambda candidates: torch.arange(3).expand(2, 3), r"returned torch.int64 \[2, 3\]"),
    "floats": Fault(
        lambda candidates: torch.zeros(2, 2), r"returned torch.float32 \[2, 2\] on cpu; expected integers"
    ),
    "mask": Fault(
        lambda candidates: torch.ones(2, 2, dtype=torch.bool), r"returned torch.bool \[2, 2\] on cpu"
    ),
    "device": Fault(
        lambda candidates: torch.ones(2, 2, dtype=torch.int64, device="meta"),
        r"returned torch.int64 \[2, 2\] on meta",
    ),
    "duplicate": Fault(
        lambda candidates: torch.tensor([[0, 1], [3, 3]]), "returned an index twice", deferred=True
    ),
    "beyond": Fault(
        lambda candidates: torch.tensor([[0, 5], [0, 1]]),
        "returned an index out of range; indices must lie from 0 below 5",
        deferred=True,
    ),
    "negative": Fault(
        lambda candidates: torch.tensor([[0, 1], [-1, 1]]), "returned an index out of range", deferred=True
    ),
}


def assign(**tensors: Any) -> Callable[[Draft], None]:
    """An edit that assigns what a function of the draft returns."""

    def act(draft: Draft) -> None:
        for name, make in tensors.items():
            setattr(draft, name, make(draft))

    return act


def scribble(draft: Draft) -> None:
    draft.values[1, 0, 0] = float("nan")


EDIT_FAULTS = RAISING | {
    "shape": Fault(
        assign(keys=lambda draft: draft.keys[:, :1]),
        r"made the draft's keys torch.float32 \[2, 1, 2, 1, 4\] on cpu; expected torch.float32 \[2, 3, 2, 1",
    ),
    "values-shape": Fault(
        assign(values=lambda draft: draft.values[..., :2]), r"made the draft's values torch.float32"
    ),
    "dtype": Fault(assign(keys=lambda draft: draft.keys.double()), r"made the draft's keys torch.float64"),
    "half": Fault(assign(values=lambda draft: draft.values.half()), r"made the draft's values torch.float16"),
    "device": Fault(
        assign(keys=lambda draft: draft.keys.to("meta")), r"made the draft's keys .* on meta; expected"
    ),
    "none": Fault(assign(keys=lambda draft: None), "made the draft's keys nothing; expected torch.float32"),
    "number": Fault(assign(values=lambda draft: 3), "made the draft's values a int; expected torch.float32"),
    "nan": Fault(
        assign(keys=lambda draft: draft.keys * float("nan")), "made keys that are not finite", deferred=True
    ),
    "nan-in-place": Fault(scribble, "made values that are not finite", deferred=True),
    "infinite": Fault(
        assign(values=lambda draft: draft.values / 0), "made values that are not finite", deferred=True
    ),
}
