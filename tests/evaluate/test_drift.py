"""Measuring drift: what is compared, what is kept, and what is refused before any work."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import attrs
import pytest
import torch

from tests.toys import register
from tetherflow.errors import EvaluationError, OutputError, StageError, TetherflowError, WeightsError
from tetherflow.evaluate import drift as drift_module
from tetherflow.evaluate.bootstrap import Estimate
from tetherflow.evaluate.drift import measure_drift, plan_windows, with_prompts
from tetherflow.evaluate.drift_report import DriftReport
from tetherflow.evaluate.figures import HorizonFigures
from tetherflow.evaluate.shelf import Shelf, code_digest
from tetherflow.recipe import Recipe, load_recipe
from tetherflow.rollout.batches import batches_of
from tetherflow.rollout.open_session import Backbones
from tetherflow.rollout.progress import RolloutProgress
from tetherflow.rollout.session import sample_seed

pytestmark = pytest.mark.usefixtures("toy")
PROMPTS = ["one", "two", "three", "four"]
HORIZON = 5.25  # seconds: 21 latent frames, 7 chunks, and the shortest that holds a window of 5 s
CHUNKS = 7
SMALL = ["cache.budget=9", "cache.regions={sink: 3, memory: 3, recent: 3}"]


def recipe(
    name: str = "fifo",
    *changes: str,
    prompts: Sequence[str] = PROMPTS,
    batch_size: int = 2,
    seconds: float = HORIZON,
) -> Recipe:
    loaded = load_recipe(name, ["backbone.use=toy", "runtime.threads=1", *changes])
    return with_prompts(loaded, prompts, seconds=seconds, seed=7, batch_size=batch_size)


def measured(
    folder: Path,
    *recipes: Recipe,
    horizons: Sequence[float] = (HORIZON,),
    progress: RolloutProgress | None = None,
) -> DriftReport:
    shown = progress or RolloutProgress(enabled=False)
    return measure_drift(recipes, horizons, folder, reference_clips=4, progress=lambda: shown)


def files(folder: Path) -> dict[str, int]:
    """When each file was written."""
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.iterdir())}


def numbers(report: DriftReport, policy: int = 0) -> list[float]:
    """Every figure of a policy, its intervals included."""
    return [
        number
        for figures in report.policies[policy].figures
        for estimate in attrs.asdict(figures).values()
        if isinstance(estimate, dict)
        for number in estimate.values()
    ]


class Counting(RolloutProgress):
    """Counts chunks; at one of them, sends this process a signal."""

    def __init__(self, stop_at: int = 0) -> None:
        super().__init__(enabled=False)
        self.chunks = 0
        self.stop_at = stop_at

    def chunk(self, seconds: float, frames: int, label: str) -> None:
        self.chunks += 1
        if self.chunks == self.stop_at:
            os.kill(os.getpid(), signal.SIGINT)


def test_recipes_are_compared_over_the_same_videos(tmp_path: Path) -> None:
    pair = [recipe("fifo", seconds=6), recipe("tethercache", seconds=6)]
    report = measured(tmp_path, *pair, horizons=[6, 5.25])
    fifo, tethercache = report.policies
    assert (fifo.name, tethercache.name) == ("fifo", "tethercache")
    assert [figures.horizon for figures in fifo.figures] == [5.25, 6]
    assert fifo.share is None
    assert len(tethercache.share or []) == 2
    assert report.prompts == PROMPTS
    assert report.seeds == [sample_seed(7, prompt, 0) for prompt in PROMPTS]
    assert (report.seed, report.window_frames, report.reference_clips) == (7, 80, 4)
    assert (report.backbone, report.weights_sha256, report.device) == ("toy", "0" * 64, "cpu")
    assert (fifo.dtype, fifo.recipe["stages"]["evict"]["use"]) == ("float32", "sliding-window")
    # A cache of 21 latent frames is not full before the first window ends, so no policy has acted in it.
    assert fifo.figures[0].first == tethercache.figures[0].first
    assert DriftReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_interrupted_measurement_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, recipe(), progress=Counting(stop_at=CHUNKS + 2))
    kept = files(tmp_path)
    assert len(kept) == 1
    rest = Counting()
    report = measured(tmp_path, recipe(), progress=rest)
    assert rest.chunks == CHUNKS
    assert kept.items() <= files(tmp_path).items()
    again = Counting()
    assert measured(tmp_path, recipe(), progress=again) == report
    assert again.chunks == 0
    assert measured(tmp_path / "fresh", recipe()) == report
    assert all(name.endswith(".safetensors") for name in files(tmp_path / "fresh"))


def place(
    name: str, *changes: str, index: int = 0, horizon: float = HORIZON, count: int = 4, size: int = 2
) -> Path:
    """Where a batch of a recipe is kept."""
    made = recipe(name, *changes, prompts=PROMPTS[:count], batch_size=size, seconds=horizon)
    device = torch.device("cpu")
    shelf = Shelf.of(Path("kept"), made, plan_windows(made, [horizon]), Backbones().of(made, device), device)
    return shelf.path(batches_of(made)[index])


def test_statistics_are_reused_only_for_the_same_videos() -> None:
    here = place("tethercache")
    same = [
        place("tethercache", count=2),  # the first batch of fewer prompts
        place("tethercache", "runtime.devices=2", "output.folder=elsewhere", "description=another"),
    ]
    assert set(same) == {here}
    other = [
        place("tethercache", index=1),
        place("tethercache", size=1),
        place("tethercache", horizon=6.0),
        place("tethercache", "backbone.weights_seed=1"),
        place("tethercache", "stages.edit.0.tau=0.2"),
        place("tethercache", "cache.regions={sink: 3, memory: 13, recent: 5}"),
        place("tethercache", "rollout.chunk_frames=1"),
        place("tethercache", "runtime.numerics=parity"),
        place("tethercache", "runtime.matmul=fp8"),
        place("tethercache", "runtime.precision=bfloat16"),
        place("tethercache-no-tame", "output.name=tethercache"),
    ]
    assert len({here, *other}) == 1 + len(other)


def test_statistics_of_older_code_are_not_reused(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(tmp_path, "drift-plugin", "[tetherflow.policies]\nnewest = drift_plugin:Newest\n")
    source = (
        "from tetherflow_policies.sliding_window import SlidingWindow\nclass Newest(SlidingWindow): pass\n"
    )
    (tmp_path / "drift_plugin.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    plugged = recipe("fifo", "stages.evict.use=newest")
    before = code_digest(plugged)
    assert code_digest(plugged) == before
    (tmp_path / "drift_plugin.py").write_text(source + "# changed\n")
    assert code_digest(plugged) != before
    assert code_digest(recipe("fifo")) != before


def test_batches_of_any_size_give_the_same_figures(tmp_path: Path) -> None:
    alone = measured(tmp_path, recipe("tethercache", batch_size=1))
    together = measured(tmp_path, recipe("tethercache", batch_size=3))
    assert len(files(tmp_path)) == 4 + 1  # the last video is a batch of its own in both
    # The same noise; products of another shape may round the last bit, and then a pixel, differently.
    assert numbers(together) == pytest.approx(numbers(alone), rel=1e-3, abs=1e-4)


def test_chunk_sizes_may_differ(tmp_path: Path) -> None:
    single = recipe("fifo", "rollout.chunk_frames=1", "output.name=single")
    report = measured(tmp_path, recipe(), single)
    assert [policy.name for policy in report.policies] == ["fifo", "single"]
    assert numbers(report, 0) != numbers(report, 1)


@pytest.mark.slow
def test_processes_share_the_work_bit_for_bit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    one = measured(tmp_path / "one", recipe())
    two = measured(tmp_path / "two", recipe("fifo", "runtime.devices=2"))
    assert numbers(two) == numbers(one)
    assert list(files(tmp_path / "two")) == list(files(tmp_path / "one"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_error_in_a_process_arrives_as_itself(tmp_path: Path) -> None:
    broken = recipe("tethercache", *SMALL, "stages.score=[raises]", "runtime.devices=2")
    with pytest.raises(StageError, match="the scorer is broken on purpose") as caught:
        measured(tmp_path, broken)
    assert caught.value.plugin == "raises"
    assert files(tmp_path) == {}


def test_failing_stage_keeps_what_was_measured_before(tmp_path: Path) -> None:
    with pytest.raises(StageError):
        measured(tmp_path, recipe(), recipe("tethercache", *SMALL, "stages.score=[raises]"))
    assert ["-fifo-" in name for name in files(tmp_path)] == [True, True]


@pytest.mark.parametrize(
    ("horizons", "message"),
    [
        ([], "at least one horizon"),
        ([4.0, 6.0], r"the horizon of 4 s \(64 frames\) is shorter than a window of 5 s"),
        ([-1.0], "shorter than a window"),
        ([5.25, 7.0], "the horizon of 7 s lies past the end"),
        ([6.0, 6.0], "these are given: 6, 6"),
        ([float("nan")], "these are given: nan"),
        ([float("inf"), 6.0], "these are given: inf, 6"),
    ],
)
def test_wrong_horizons_are_told_before_any_work(tmp_path: Path, horizons: list[float], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        measured(tmp_path / "new", recipe("fifo", "backbone.missing=true"), horizons=horizons)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("seconds", [5.25, 29.9, 30.0, 30.03, 60.0, 240.0])
def test_a_video_is_as_long_as_its_last_horizon(seconds: float) -> None:
    plan = plan_windows(recipe(seconds=seconds), [seconds])
    assert seconds - plan.spans[-1][1] / 16 < 0.5


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    cases: list[tuple[list[Recipe], str]] = [
        ([], "no recipe"),
        ([recipe(), recipe("tethercache"), recipe()], "'fifo' is named 2 times"),
        ([recipe(prompts=["one", "two", "one"])], "'one' is given 2 times"),
        ([recipe(prompts=["one"])], "measure more prompts"),
        ([recipe(), recipe("tethercache", "backbone.weights_seed=1")], "differ in their backbone"),
        ([recipe(), recipe("tethercache", prompts=["one", "two"])], "the same prompts, seeds and length"),
    ]
    for recipes, message in cases:
        with pytest.raises(EvaluationError, match=message):
            measured(tmp_path / "new", *recipes)
    assert not (tmp_path / "new").exists()


def test_missing_parts_are_told_before_any_rollout(tmp_path: Path) -> None:
    with pytest.raises(TetherflowError, match="ships no reference clips"):
        measured(tmp_path, recipe("fifo", "backbone.reference=false"))
    with pytest.raises(WeightsError, match=r"toy\.safetensors"):
        measured(tmp_path, recipe("fifo", "backbone.missing=true"))
    assert files(tmp_path) == {}
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write into the folder"):
        measured(tmp_path / "file", recipe("fifo", "backbone.missing=true"))


def test_share_of_a_baseline_that_may_not_drift_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def drifting(low: float) -> HorizonFigures:
        names = [field.name for field in attrs.fields(HorizonFigures) if field.name != "horizon"]
        return HorizonFigures(horizon=6.0, **dict.fromkeys(names, Estimate(low + 1, low, low + 2)))

    share = Estimate(0.2, 0.1, 0.3)
    monkeypatch.setattr(drift_module, "drift_ratios", lambda *_: [share, share])
    known = [drifting(-0.1), drifting(0.5)]
    assert drift_module._shares(None, None, known) == [None, share]  # type: ignore[arg-type]
    assert drift_module._shares(None, None, [drifting(-0.1)] * 2) == [None, None]  # type: ignore[arg-type]
