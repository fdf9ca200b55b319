"""Replayed passes compute what launched ones do; run with `pytest -m gpu` on a machine that has a GPU."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from tetherflow.recipe import load_recipe
from tetherflow.rollout import graphs
from tetherflow.rollout.open_session import open_session
from tetherflow.rollout.prompts import PromptSchedule
from tetherflow.rollout.session import Session

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CUDA = torch.device("cuda")
PROMPTS = ["a red circle on a green field", "a blue square on a grey field"]
RECIPES = ["fifo", "fifo-relative", "tethercache", "rolling-sink", "infinity-rope", "deep-forcing"]
RECIPES += ["forcing-kv", "h2o", "fademem"]


def session_for(name: str, *changes: str) -> Session:
    return open_session(load_recipe(name, list(changes)), CUDA)


def latents_of(session: Session, prompts: list[str] | list[PromptSchedule], frames: int = 44) -> Tensor:
    """44 frames: the last chunk is shorter than the others."""
    stream = session.stream(prompts, latent_frames=frames, seeds=[0, 1], decode=False)
    return torch.cat([chunk.latents for chunk in stream], dim=1)


class Counted(graphs.GraphedTransformer):
    """Counts what it records."""

    recorded = 0

    def _record(self, *args: object) -> object:  # type: ignore[override]
        Counted.recorded += 1
        return super()._record(*args)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_bits(name: str, precision: str) -> None:
    changes = [f"runtime.precision={precision}"]
    plain = latents_of(session_for(name, *changes, "runtime.graphs=never"), PROMPTS)
    Counted.recorded = 0
    with patch("tetherflow.rollout.session.GraphedTransformer", Counted):
        replayed = latents_of(session_for(name, *changes), PROMPTS)
    print(f"\n{name} {precision}: {Counted.recorded} recorded")
    assert torch.equal(plain, replayed)
    if name in ("fifo", "fifo-relative", "tethercache"):
        assert Counted.recorded == 1


def test_another_prompt_is_recorded_anew() -> None:
    recipe = load_recipe("two-prompts")
    schedules = [item.schedule for item in items(recipe)]
    frames = 160
    first = [
        torch.cat(
            [
                chunk.latents
                for chunk in session_for("two-prompts", change).stream(
                    schedules, latent_frames=frames, seeds=[0] * len(schedules), decode=False
                )
            ],
            dim=1,
        )
        for change in ("runtime.graphs=never", "runtime.graphs=auto")
    ]
    assert torch.equal(*first)


def items(recipe: object) -> list[object]:
    from tetherflow.rollout.batches import items_of

    return list(items_of(recipe))  # type: ignore[arg-type]


def test_a_pass_that_cannot_be_recorded_is_launched() -> None:
    session = session_for("tethercache", "runtime.precision=float32")
    plain = latents_of(session, PROMPTS)
    forward = type(session.backbone.transformer).forward  # type: ignore[attr-defined]

    def looks(self: object, latents: Tensor, *args: object) -> Tensor:
        latents.sum().item()
        return forward(self, latents, *args)  # type: ignore[no-any-return]

    with (
        patch.object(type(session.backbone.transformer), "forward", looks),
        pytest.warns(RuntimeWarning, match="cannot be recorded"),
    ):
        launched = latents_of(session, PROMPTS)
    assert torch.equal(plain, launched)
