"""Recorded passes compute what launched ones do; run with `pytest -m gpu` on a machine that has a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from tetherflow.recipe import Recipe, load_recipe
from tetherflow.rollout import graphs
from tetherflow.rollout.batches import items_of
from tetherflow.rollout.open_session import open_session
from tetherflow.rollout.prompts import PromptSchedule
from tetherflow.rollout.session import Session
from tetherflow_policies.grab import TopM

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CUDA = torch.device("cuda")
PROMPTS = ["a red circle on a green field", "a blue square on a grey field"]
RECIPES = ["fifo", "fifo-relative", "tethercache", "rolling-sink", "infinity-rope", "deep-forcing"]
RECIPES += [
    "forcing-kv",
    "h2o",
    "fademem",
    "fademem-tame",
    "grab-ema-sink",
    "tethercache-ramp",
    "tethercache-adaptive",
]


def session_for(recipe: Recipe) -> Session:
    return open_session(recipe, CUDA)


def latents_of(session: Session, prompts: Sequence[str | PromptSchedule], frames: int = 53) -> Tensor:
    """53 frames: the last chunk is shorter than the others."""
    seeds = list(range(len(prompts)))
    stream = session.stream(prompts, latent_frames=frames, seeds=seeds, decode=False)
    return torch.cat([chunk.latents for chunk in stream], dim=1)


class Counted(graphs._Recorder):
    """Counts what it records."""

    recorded: ClassVar[Counter[str]] = Counter()
    launched: ClassVar[list[torch.cuda.CUDAGraph]] = []

    def record(self, compute: Callable[[], graphs.Result]) -> tuple[torch.cuda.CUDAGraph, graphs.Result]:
        self.recorded["denoising"] += 1
        return super().record(compute)

    def record_once(self, compute: Callable[[], object]) -> torch.cuda.CUDAGraph:
        self.recorded["context"] += 1
        return super().record_once(compute)

    def launch_once(self, graph: torch.cuda.CUDAGraph) -> None:
        super().launch_once(graph)
        self.launched.append(graph)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_bits(name: str, precision: str) -> None:
    changes = [f"runtime.precision={precision}"]
    plain = latents_of(session_for(load_recipe(name, [*changes, "runtime.graphs=never"])), PROMPTS)
    Counted.recorded.clear()
    Counted.launched.clear()
    with patch.object(graphs, "_Recorder", Counted):
        recorded = latents_of(session_for(load_recipe(name, changes)), PROMPTS)
    print(f"\n{name} {precision}: {dict(Counted.recorded)} recorded")
    assert torch.equal(plain, recorded)
    if name in ("fifo", "fifo-relative", "tethercache"):
        assert Counted.recorded["denoising"] == 1
        assert Counted.recorded["context"] > 5
        assert graphs._runtime() is None or len({id(graph) for graph in Counted.launched}) <= 3
    Counted.launched.clear()


def test_a_recording_stands_for_later_ones_that_differ_in_what_kernels_are_given() -> None:
    def double(total: Tensor, index: int) -> Tensor:
        return total.add_(index).mul_(2)

    recorder, sums = graphs._Recorder(), [torch.zeros(4, device=CUDA) for _ in range(12)]
    launched = []
    for index, total in enumerate(sums):
        graph = recorder.record_once(partial(double, total, index))
        recorder.launch_once(graph)
        launched.append(graph)
    assert [float(total[0]) for total in sums] == [2.0 * index for index in range(12)]
    if graphs._runtime() is not None:
        assert len({id(graph) for graph in launched}) == graphs._STANDING
    # Another chain of kernels is made anew, and then stands for its own kind.
    other = torch.zeros(4, device=CUDA)
    for _ in range(4):
        recorder.launch_once(recorder.record_once(lambda: other.add_(1).mul_(3).sub_(1)))
    assert float(other[0]) == 80.0  # 2, 8, 26, 80


def test_a_recording_that_draws_random_numbers_stands_for_no_other() -> None:
    drawn = []
    for recorded in (True, False):
        torch.cuda.manual_seed(3)
        recorder, found = graphs._Recorder(), [torch.zeros(5, device=CUDA) for _ in range(6)]
        for x in found:
            if recorded:
                recorder.launch_once(recorder.record_once(x.normal_))
            else:
                x.normal_()
        drawn.append(torch.stack(found))
    assert torch.equal(*drawn)
    assert not recorder._standing


def test_another_prompt_is_recorded_anew() -> None:
    videos = []
    for choice in ("never", "auto"):
        recipe = load_recipe("two-prompts", [f"runtime.graphs={choice}"])
        schedules = [item.schedule for item in items_of(recipe)]
        videos.append(latents_of(session_for(recipe), schedules, 160))
    assert torch.equal(*videos)


def test_a_pass_that_cannot_be_recorded_is_launched() -> None:
    session = session_for(load_recipe("tethercache", ["runtime.precision=float32"]))
    plain = latents_of(session, PROMPTS)
    transformer: Any = type(session.backbone.transformer)
    run = transformer._run

    def looks(self: object, latents: Tensor, *args: object, **kwargs: object) -> Any:
        latents.sum().item()
        return run(self, latents, *args, **kwargs)

    with (
        patch.object(transformer, "_run", looks),
        pytest.warns(RuntimeWarning, match="denoising passes cannot be recorded"),
        pytest.warns(RuntimeWarning, match="context passes cannot be recorded"),
    ):
        launched = latents_of(session, PROMPTS)
    assert torch.equal(plain, launched)
    assert torch.randn(1, device=CUDA).isfinite()  # random numbers can still be drawn


def test_a_policy_that_asks_the_device_decides_as_ever() -> None:
    """The context pass is launched, and no decision made in vain is left behind."""
    session = session_for(load_recipe("tethercache", ["runtime.precision=float32"]))
    plain = latents_of(session, PROMPTS)
    select: Any = TopM.select

    def looks(self: TopM, candidates: Any, score: Tensor) -> Tensor:
        if candidates.layer == 3:
            score.sum().item()
        found: Tensor = select(self, candidates, score)
        return found

    looks.__dict__.update(select.__dict__)  # what marks a hook
    with patch.object(TopM, "select", looks):
        other = session_for(load_recipe("tethercache", ["runtime.precision=float32"]))
        with pytest.warns(RuntimeWarning, match="context passes cannot be recorded"):
            launched = latents_of(other, PROMPTS)
    assert torch.equal(plain, launched)
