"""Golden traces replay through the engine: the published implementation's, and an independent reference's.

The reference (`reference.py`) records what the published traces leave out: other widths, heads, layers and
grids, chunk sizes, schedules and policies. A tampered trace must fail, and a folder that is none say why.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.golden_traces import GOLDEN
from tests.testing.reference import Model, Policy, write_folder
from tetherflow.errors import TetherflowError, WeightsError
from tetherflow.testing.replay import TOLERANCE, Numerics, Replay, ReplayError, build_policy, replay_folder
from tetherflow_backbones.causal_wan import Architecture

TRACES = ["fifo", "sink_fifo", "tethercache", "tethercache_no_edit", "tethercache_relevance_only"]


# --- the published implementation ---------------------------------------------------------------------


@pytest.mark.parametrize("numerics", ["parity", "fast"])
def test_published_traces_replay(numerics: Numerics) -> None:
    replays = list(replay_folder(GOLDEN, numerics))
    assert [replay.name for replay in replays] == TRACES
    for replay in replays:
        assert replay.passed, replay
        assert replay.memory
        assert replay.tolerance == {"parity": 1e-4, "fast": 1e-3}[numerics]
        # Far within tolerance: a fault that costs an order of magnitude should show.
        assert replay.error < 5e-5


# --- an independent reference -------------------------------------------------------------------------

NARROW = Architecture(
    dim=16,
    ffn_dim=24,
    num_heads=2,
    num_layers=2,
    freq_dim=8,
    text_dim=10,
    text_len=3,
    in_dim=2,
    out_dim=2,
    patch_size=(1, 2, 2),
)

FOLDERS: dict[str, tuple[Model, dict[str, Policy]]] = {
    "an-oblong-grid": (
        Model(NARROW, (4, 6)),
        {
            "fifo": Policy(budget=6, sink=0, recent=6, chunks=5),
            "fifo-odd-budget": Policy(budget=7, sink=0, recent=4, chunks=5),
            "sink-fifo": Policy(budget=8, sink=2, recent=3, chunks=6),
            "tethercache": Policy(budget=9, sink=2, recent=3, chunks=7, alpha=0.35, tau=0.6),
            "wide-recent": Policy(budget=12, sink=1, recent=5, chunks=8, alpha=0.35, tau=0.6),
            "odd-budget": Policy(budget=8, sink=1, recent=4, chunks=7, alpha=0.35, tau=0.6),
        },
    ),
    "three-heads-chunks-of-two": (
        Model(
            attrs.evolve(NARROW, dim=36, num_heads=3, num_layers=1, ffn_dim=20, patch_size=(1, 1, 1)),
            (2, 3),
            chunk_frames=2,
            steps=(1000, 600),
            shift=3.0,
            context_timestep=25,
            seed=1,
        ),
        {
            "no-sink": Policy(budget=6, sink=0, recent=2, chunks=8, alpha=0.35, tau=0.6),
            "alpha-zero": Policy(budget=8, sink=2, recent=2, chunks=8, alpha=0.0, tau=0.6),
            "tau-zero": Policy(budget=8, sink=1, recent=3, chunks=8, alpha=0.35, tau=0.0),
            "tau-one": Policy(budget=8, sink=2, recent=2, chunks=8, alpha=0.35, tau=1.0),
            "cold": Policy(budget=8, sink=2, recent=2, chunks=8, alpha=1.0, tau=0.3, score_temperature=0.2),
        },
    ),
    "single-frames-three-layers": (
        Model(
            attrs.evolve(
                NARROW, dim=12, num_heads=1, num_layers=3, in_dim=3, out_dim=3, patch_size=(1, 2, 1)
            ),
            (4, 2),
            chunk_frames=1,
            steps=(1000, 900, 500),
            shift=8.0,
            seed=2,
        ),
        {
            "fifo-of-one": Policy(budget=1, sink=0, recent=1, chunks=4),
            "sink-fifo": Policy(budget=4, sink=3, recent=1, chunks=7),
            "tethercache": Policy(budget=5, sink=1, recent=2, chunks=12, alpha=0.35, tau=0.6),
            "memory-of-one": Policy(budget=2, sink=0, recent=1, chunks=8, alpha=0.35, tau=0.6),
        },
    ),
}


@pytest.fixture(scope="module", params=FOLDERS)
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("traces") / request.param, *FOLDERS[request.param])


@pytest.mark.parametrize("numerics", ["parity", "fast"])
def test_reference_traces_replay(recorded: Path, numerics: Numerics) -> None:
    replays = list(replay_folder(recorded, numerics))
    assert [replay.name for replay in replays] == list(FOLDERS[recorded.name][1])
    for replay in replays:
        assert replay.passed, replay
        assert replay.error < 2e-5


def test_reference_traces_are_worth_replaying(recorded: Path) -> None:
    """They reach a full cache, recall something else than the latest, and stay finite."""
    for name, policy in FOLDERS[recorded.name][1].items():
        trace = load_file(recorded / f"{name}.safetensors")
        assert all(bool(tensor.isfinite().all()) for tensor in trace.values())
        assert 0.05 < float(trace["latents"].abs().mean()) < 20
        if policy.recalls:
            last = trace["memory_frames"][-1]
            assert bool((last >= policy.sink).all())
            oldest = trace["latents"].shape[0] - policy.recent - policy.layout.memory
            assert bool((last < oldest).any()) or policy.layout.memory == 1


# --- tampering ----------------------------------------------------------------------------------------

ONE = {"tethercache": Policy(budget=6, sink=1, recent=3, chunks=5, alpha=0.35, tau=0.6)}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("traces") / "pristine", Model(NARROW, (4, 4)), ONE)


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "traces"))


def tamper(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> Replay:
    path = folder / "tethercache.safetensors"
    trace = load_file(path)
    change(trace)
    save_file(trace, path)
    (replay,) = replay_folder(folder)
    return replay


def add(name: str, amount: float, at: tuple[int, ...]) -> Callable[[dict[str, Tensor]], None]:
    def change(trace: dict[str, Tensor]) -> None:
        trace[name][at] += amount

    return change


def test_untouched_trace_passes(folder: Path) -> None:
    replay = tamper(folder, lambda trace: None)
    assert replay.passed
    assert replay.error < 2e-5


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("latents", add("latents", 1e-3, (7, 1, 2, 3))),
        ("latents", add("latents", -1e-3, (0, 0, 0, 0))),
        ("latents", add("latents", float("nan"), (7, 1, 2, 3))),
        ("flows", add("flow", 1e-3, (4, 4, 0, 0, 0, 0))),
        ("flows", add("flow", float("nan"), (4, 4, 0, 0, 0, 0))),
        ("flows", add("flow", float("inf"), (0, 0, 0, 0, 0, 0))),
        ("cache", add("final_k", 1e-3, (1, 5, 0, 0))),
        ("cache", add("final_k", float("nan"), (0, 0, 0, 0))),
        ("cache", add("final_v", float("nan"), (1, 5, 1, 7))),
        ("cache", add("final_v", 1e-3, (0, 0, 0, 0))),
    ],
)
def test_tampered_number_fails(folder: Path, field: str, change: Callable[[dict[str, Tensor]], None]) -> None:
    """A number that is off by 1e-3, or that is none, fails wherever it stands."""
    replay = tamper(folder, change)
    assert not replay.passed
    assert not getattr(replay, field) <= 5e-4
    assert not replay.error <= 5e-4
    assert replay.memory


def test_tampered_memory_fails(folder: Path) -> None:
    replay = tamper(folder, add("memory_frames", 1, (-1, 0, 1)))
    assert not replay.memory
    assert not replay.passed
    assert replay.error < 2e-5


def test_tampered_noise_fails(folder: Path) -> None:
    assert not tamper(folder, add("noise", 1.0, (1, 0, 0, 0, 0, 0))).passed


def test_other_settings_fail(folder: Path) -> None:
    """The settings are what is replayed: with another τ the trace does not match."""
    edit(folder, lambda golden: golden["traces"]["tethercache"].update(tau=0.5))
    (replay,) = replay_folder(folder)
    assert not replay.passed


def test_other_weights_fail(folder: Path) -> None:
    path = folder / "weights.safetensors"
    weights = load_file(path)
    weights["model.blocks.1.ffn.2.weight"] *= 1.01
    save_file(weights, path)
    (replay,) = replay_folder(folder)
    assert not replay.passed


def test_tolerance_can_be_chosen(folder: Path) -> None:
    (strict,) = replay_folder(folder, tolerance=0.0)
    assert not strict.passed or strict.error == 0.0
    tamper(folder, add("latents", 1e-3, (7, 1, 2, 3)))
    (lax,) = replay_folder(folder, tolerance=1e-2)
    assert lax.passed


@pytest.mark.parametrize("numbers", [(0, 0, "nan"), (0, "nan", 0), ("nan", 0, 0)])
def test_what_is_not_a_number_never_passes(numbers: tuple[Any, Any, Any]) -> None:
    replay = Replay("x", *map(float, numbers), memory=True, tolerance=TOLERANCE["parity"])
    assert not replay.passed
    assert replay.error != replay.error


# --- folders that are none ----------------------------------------------------------------------------


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "golden.json"
    golden = json.loads(path.read_text())
    change(golden)
    path.write_text(json.dumps(golden))


def fails(folder: Path, text: str, kind: type[TetherflowError] = ReplayError) -> None:
    with pytest.raises(kind, match=text):
        list(replay_folder(folder))


def test_folder_without_golden_json(tmp_path: Path) -> None:
    fails(tmp_path, r"golden.json cannot be read .*; a folder of golden traces holds one")
    fails(tmp_path / "nowhere", "golden.json cannot be read")


@pytest.mark.parametrize("content", ["", "{", "\x00", "[1, 2"])
def test_golden_json_that_is_no_json(folder: Path, content: str) -> None:
    (folder / "golden.json").write_text(content)
    fails(folder, "golden.json cannot be read")


@pytest.mark.parametrize("content", ["[]", "3", "null", "{}"])
def test_golden_json_that_holds_something_else(folder: Path, content: str) -> None:
    (folder / "golden.json").write_text(content)
    fails(folder, "golden.json lacks arch, latent_hw")


@pytest.mark.parametrize("key", ["arch", "latent_hw", "timestep_shift", "denoising_steps", "traces"])
def test_golden_json_that_lacks_something(folder: Path, key: str) -> None:
    edit(folder, lambda golden: golden.pop(key))
    fails(folder, f"golden.json lacks {key}")


@pytest.mark.parametrize("key", ["budget", "sink", "recent"])
def test_settings_that_lack_something(folder: Path, key: str) -> None:
    edit(folder, lambda golden: golden["traces"]["tethercache"].pop(key))
    fails(folder, f"trace 'tethercache' lacks {key}")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda golden: golden["arch"].update(dim=17),
            "does not describe a transformer: .*dim 17 does not split",
        ),
        (lambda golden: golden["arch"].update(depth=3), "does not describe a transformer: .*depth"),
        (lambda golden: golden.update(latent_hw=[5, 4]), "a latent frame of 5x4 does not split"),
        (lambda golden: golden.update(denoising_steps=[]), "does not describe a transformer: .*steps"),
    ],
)
def test_architecture_that_is_none(folder: Path, change: Callable[[dict[str, Any]], None], text: str) -> None:
    edit(folder, change)
    fails(folder, f"(?s){text}")


def test_trace_that_is_missing_or_broken(folder: Path) -> None:
    path = folder / "tethercache.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    fails(folder, "tethercache.safetensors cannot be read")
    path.unlink()
    fails(folder, "tethercache.safetensors cannot be read")


@pytest.mark.parametrize("name", ["context", "noise", "flow", "latents"])
def test_trace_that_lacks_a_tensor(folder: Path, name: str) -> None:
    with pytest.raises(ReplayError, match=f"tethercache.safetensors lacks {name}"):
        tamper(folder, lambda trace: trace.__delitem__(name))


def test_trace_without_memory_and_cache_is_compared_by_the_rest(folder: Path) -> None:
    def strip(trace: dict[str, Tensor]) -> None:
        for name in ("memory_frames", "final_k", "final_v"):
            del trace[name]

    assert tamper(folder, strip).passed


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        (
            "latents",
            lambda x: x[:-1].clone(),
            r"the trace has \[14, 2, 4, 4\] where the replay has \[15, 2, 4, 4\]",
        ),
        ("flow", lambda x: x[:, :-1].clone(), "the trace has .* where the replay has"),
        (
            "noise",
            lambda x: x[:, :-1].clone(),
            r"has noise \[5, 3, 3, 2, 4, 4\]; this model takes \[chunks, 4, 3, 2, 4, 4\]",
        ),
        ("noise", lambda x: x[:, :, :2].clone(), "has noise"),
        ("noise", lambda x: x[:0].clone(), r"has noise \[0, 4, 3, 2, 4, 4\]"),
    ],
)
def test_trace_of_another_shape(
    folder: Path, name: str, change: Callable[[Tensor], Tensor], text: str
) -> None:
    with pytest.raises(ReplayError, match=text):
        tamper(folder, lambda trace: trace.update({name: change(trace[name])}))


def test_weights_that_are_missing_or_of_another_architecture(folder: Path) -> None:
    edit(folder, lambda golden: golden["arch"].update(ffn_dim=32))
    fails(folder, "another architecture", WeightsError)
    (folder / "weights.safetensors").unlink()
    fails(folder, "weights are missing", WeightsError)


def test_regions_that_do_not_fit(folder: Path) -> None:
    edit(folder, lambda golden: golden["traces"]["tethercache"].update(recent=2, budget=5))
    fails(folder, "chunk of 3 frames does not fit into a recent region of 2", TetherflowError)


def test_settings_stand_for_a_policy() -> None:
    settings = {"budget": 12, "sink": 3, "recent": 3, "alpha": None, "tau": None}
    pipeline, layout, positions = build_policy(settings)
    assert ([stage.name for stage in pipeline.stages], positions) == (["sink-window"], "absolute")
    assert (layout.sink, layout.memory, layout.recent) == (3, 0, 9)
    pipeline, layout, positions = build_policy(settings | {"sink": 0})
    assert [stage.name for stage in pipeline.stages] == ["sliding-window"]
    pipeline, layout, positions = build_policy(settings | {"alpha": 0.0, "tau": None})
    assert [stage.name for stage in pipeline.stages][-1] == "tame"
    assert (layout.sink, layout.memory, layout.recent, positions) == (3, 6, 3, "block-relative")


def test_reference_and_published_agree_on_the_noise_levels() -> None:
    golden = json.loads((GOLDEN / "golden.json").read_text())
    model = Model(NARROW, (4, 4), steps=tuple(golden["denoising_steps"]), shift=golden["timestep_shift"])
    assert model.times == golden["warped_timesteps"]


def test_times_are_the_recorded_ones(folder: Path) -> None:
    """Without them they follow from the steps; with others the trace does not match."""
    edit(folder, lambda golden: golden.pop("warped_timesteps"))
    (replay,) = replay_folder(folder)
    assert replay.passed
    edit(folder, lambda golden: golden.update(warped_timesteps=[1000, 750, 500, 250]))
    (replay,) = replay_folder(folder)
    assert not replay.passed
