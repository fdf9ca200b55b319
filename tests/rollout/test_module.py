"""Runs of recipes through Lightning: what they write, and what is left when something goes wrong."""

from __future__ import annotations

import json
from importlib.metadata import distributions, version
from pathlib import Path

import av
import pytest
import torch
from PIL import Image

from tests.videos import read_video
from tetherflow.errors import OutputError, RecipeError, StageError, WeightsError
from tetherflow.recipe import Recipe, load_recipe
from tetherflow.rollout.batches import batches_of, items_of
from tetherflow.rollout.run import RunResult, run_recipe

pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def toy_recipe(output: Path, *overrides: str, name: str = "tethercache") -> Recipe:
    common = ["backbone.use=toy", "rollout.latent_frames=7", "runtime.threads=1", f"output.folder='{output}'"]
    return load_recipe(name, [*common, *overrides])


def videos(result: RunResult) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((result.folder.path / "videos").iterdir())}


def test_run_folder_holds_everything(output: Path) -> None:
    result = run_recipe(toy_recipe(output, "rollout.prompts=[first words, second]", "rollout.samples=2"))
    folder = result.folder.path
    assert folder.parent == output
    assert sorted(path.name for path in folder.iterdir()) == [
        "lock.json", "recipe.yaml", "results.json", "run.jsonl", "videos"
    ]  # fmt: skip
    assert list(videos(result)) == [
        "0000-first-words.mp4", "0001-first-words.mp4", "0002-second.mp4", "0003-second.mp4"
    ]  # fmt: skip
    assert len(set(videos(result).values())) == 4

    results = json.loads((folder / "results.json").read_text())
    assert results["status"] == "complete"
    assert results["errors"] == []
    for record, item in zip(results["videos"], items_of(load_recipe(folder / "recipe.yaml")), strict=True):
        assert (record["prompt"], record["seed"]) == (item.prompt, item.seed)
        assert record["latent_frames"] == 7
        assert record["frames"] == 1 + 4 * 6
        assert len(record["chunk_seconds"]) == 3
        assert record["seconds"] > 0
        assert record["peak_memory_bytes"] > 0
        frames = read_video(folder / record["file"])
        assert frames.shape == (25, 3, 64, 64)

    lock = json.loads((folder / "lock.json").read_text())
    assert lock["weights_sha256"] == "0" * 64
    assert lock["packages"]["torch"] == version("torch")
    texts = {"transformers", "tokenizers", "ftfy"} & {found.name for found in distributions()}
    assert {name: lock["packages"].get(name) for name in texts} == {name: version(name) for name in texts}
    assert lock["plugins"]["toy"] == {"distribution": "tetherflow-toy", "version": "0.1"}
    assert lock["plugins"]["tame"]["distribution"] == "tetherflow"
    assert lock["threads"] == 1
    assert lock["device"] == "cpu"
    assert [seed["index"] for seed in lock["seeds"]] == [0, 1, 2, 3]

    log = [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]
    assert log[0]["event"] == "run started"
    assert log[-1]["event"] == "run ended"
    assert sum(line["event"] == "chunk" for line in log) == 12


def test_lock_names_schedules_too(output: Path) -> None:
    result = run_recipe(toy_recipe(output, "rollout.latent_frames=3", name="tethercache-adaptive"))
    plugins = json.loads((result.folder.path / "lock.json").read_text())["plugins"]
    assert plugins["drift-distance"]["distribution"] == "tetherflow"


def test_run_again_gives_the_same_videos_in_a_new_folder(output: Path) -> None:
    first = run_recipe(toy_recipe(output, "rollout.seed=3"))
    again = run_recipe(load_recipe(first.folder.path / "recipe.yaml"))
    assert again.folder.path != first.folder.path
    assert again.folder.path.parent == first.folder.path.parent
    assert videos(again) == videos(first)
    other = run_recipe(toy_recipe(output, "rollout.seed=4"))
    assert videos(other) != videos(first)


def test_seed_belongs_to_prompt_and_sample(output: Path) -> None:
    few = items_of(toy_recipe(output, "rollout.prompts=[b]", "rollout.samples=2"))
    many = items_of(toy_recipe(output, "rollout.prompts=[a, b]", "rollout.samples=3"))
    assert len({item.seed for item in many}) == 6
    assert {(item.prompt, item.sample, item.seed) for item in few} <= {
        (item.prompt, item.sample, item.seed) for item in many
    }


def test_batches_are_formed_before_they_are_shared(output: Path) -> None:
    recipe = toy_recipe(output, "rollout.samples=5", "runtime.batch_size=2", "runtime.devices=3")
    assert [[item.index for item in batch] for batch in batches_of(recipe)] == [[0, 1], [2, 3], [4]]


def test_batch_writes_each_of_its_videos(output: Path) -> None:
    changes = ["rollout.samples=3", "rollout.seed=2"]
    alone = run_recipe(toy_recipe(output, *changes))
    together = run_recipe(toy_recipe(output, *changes, "runtime.batch_size=2"))
    for one, other in zip(alone.videos, together.videos, strict=True):
        assert one.file == other.file
        assert one.file is not None
        # The same noise; products of another shape may round the last bit differently.
        difference = (
            read_video(alone.folder.path / one.file).int() - read_video(together.folder.path / one.file).int()
        )
        assert difference.abs().float().mean() < 1


SWITCHING = (
    "rollout.prompts=[first words, [{at: 0s, prompt: second}, {at: 0.9s, prompt: third, switch: recache}], "
    "[{at: 0s, prompt: first words}]]"
)


def test_prompts_over_time_are_shown_and_recorded(output: Path) -> None:
    changes = [SWITCHING, "runtime.batch_size=4", "rollout.latent_frames=9"]
    result = run_recipe(toy_recipe(output, *changes, name="sink-window"))
    assert list(videos(result)) == ["0000-first-words.mp4", "0001-second.mp4", "0002-first-words.mp4"]
    plain, timed, alone = result.videos
    assert videos(result)["0000-first-words.mp4"] == videos(result)["0002-first-words.mp4"]
    assert (plain.switches, alone.switches) == ([], [])
    assert timed.switches == [{"frame": 4, "prompt": "third", "how": "recache"}]
    assert timed.cache_bytes - plain.cache_bytes // 2 == 4 * 9 * 4 * 8 * 8  # 9 latent frames in float32
    lock = json.loads((result.folder.path / "lock.json").read_text())
    assert lock["seeds"][1]["switches"] == timed.switches
    assert lock["seeds"][1]["prompt"] == "second"

    before = run_recipe(toy_recipe(output, *changes, "rollout.prompts=[second]", name="sink-window"))
    frames = [
        read_video(run.folder.path / "videos" / name)
        for run, name in ((result, "0001-second.mp4"), (before, "0000-second.mp4"))
    ]
    switched = (frames[0].int() - frames[1].int()).abs().flatten(1).float().mean(dim=1)
    assert float(switched[:20].max()) < 1  # but for the codec, which looks ahead
    assert float(switched[21:].min()) > 1  # the chunk of latent frame 6 begins here, after 1 + 4 * 5 frames


def test_lightning_leaves_nothing_and_says_nothing(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    run_recipe(toy_recipe(output, "rollout.latent_frames=3"))
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_processes_share_the_work_bit_for_bit(output: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Three processes for two batches: one has nothing to do, and nothing of it shows in the videos."""
    changes = ["rollout.samples=3", "runtime.batch_size=2"]
    one = run_recipe(toy_recipe(output, *changes))
    three = run_recipe(toy_recipe(output, *changes, "runtime.devices=3"))
    assert three.status == "complete"
    assert len(videos(one)) == 3
    assert videos(three) == videos(one)
    assert [video.seed for video in three.videos] == [video.seed for video in one.videos]
    assert capfd.readouterr() == ("", "")
    ranks = {json.loads(line).get("rank") for line in three.folder.log.read_text().splitlines()}
    assert {0, 1} <= ranks


@pytest.mark.slow
def test_processes_switch_prompts_bit_for_bit(output: Path) -> None:
    changes = [SWITCHING, "rollout.samples=2", "runtime.batch_size=2", "rollout.latent_frames=12"]
    one = run_recipe(toy_recipe(output, *changes))
    two = run_recipe(toy_recipe(output, *changes, "runtime.devices=2"))
    assert len(videos(one)) == 6
    assert videos(two) == videos(one)
    assert [video.switches for video in two.videos] == [video.switches for video in one.videos]


@pytest.mark.slow
def test_error_in_a_process_arrives_as_itself(output: Path) -> None:
    recipe = toy_recipe(
        output, "stages.score=[raises]", "rollout.latent_frames=24", "rollout.samples=2", "runtime.devices=2"
    )
    with pytest.raises(StageError, match="the scorer is broken on purpose") as caught:
        run_recipe(recipe)
    assert caught.value.plugin == "raises"
    (folder,) = output.iterdir()
    results = json.loads((folder / "results.json").read_text())
    assert [video["status"] for video in results["videos"]] == ["failed", "failed"]
    assert len(results["errors"]) == 2


def test_failing_plugin_keeps_what_was_generated(output: Path) -> None:
    recipe = toy_recipe(output, "stages.score=[raises]", "rollout.latent_frames=30", "rollout.samples=2")
    with pytest.raises(StageError) as caught:
        run_recipe(recipe)
    error = caught.value
    assert (error.plugin, error.stage, error.layer, error.chunk) == ("raises", "score", 0, 7)
    assert "the scorer is broken on purpose" in str(error)
    (folder,) = output.iterdir()
    assert str(folder) in error.__notes__[0]
    results = json.loads((folder / "results.json").read_text())
    assert results["status"] == "failed"
    assert "raises" in results["errors"][0]
    (video,) = results["videos"]  # the second was not begun
    assert video["status"] == "failed"
    assert video["frames"] == 1 + 4 * 20
    with av.open(str(folder / video["file"])) as container:
        assert sum(1 for _ in container.decode(video=0)) == video["frames"]


def test_missing_weights_leave_no_folder_behind(output: Path) -> None:
    with pytest.raises(WeightsError, match=r"toy\.safetensors"):
        run_recipe(toy_recipe(output, "backbone.missing=true"))
    assert list(output.iterdir()) == []


def test_unwritable_folder_is_told_before_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    recipe = toy_recipe(tmp_path / "file" / "runs", "backbone.missing=true")
    with pytest.raises(OutputError, match=r"cannot write into the folder .*file/runs"):
        run_recipe(recipe)


@pytest.mark.parametrize(
    "prompt", ["../../etc/passwd", "a/b\nc\td", "..", "x" * 10_000, "🦀 «émeu»", "a: b #c", "%s{}\\"]
)
def test_any_prompt_gives_a_video_inside_the_folder(output: Path, tmp_path: Path, prompt: str) -> None:
    path = tmp_path / "prompt.yaml"
    path.write_text(json.dumps({"extends": "fifo", "backbone": "toy", "rollout": {"prompts": [prompt]}}))
    result = run_recipe(load_recipe(path, ["rollout.latent_frames=2", f"output.folder='{output}'"]))
    (video,) = result.videos
    assert video.prompt == prompt
    assert video.file is not None
    assert (result.folder.path / video.file).resolve().parent == result.folder.path / "videos"
    assert load_recipe(result.folder.path / "recipe.yaml").rollout.prompts == [prompt]


def test_missing_gpu_is_told(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(RecipeError, match="needs 1 CUDA devices, but 0 are there"):
        run_recipe(toy_recipe(output, "runtime.device=cuda"))
    assert not output.exists()


def test_rollout_continues_an_image(output: Path, tmp_path: Path) -> None:
    Image.new("RGB", (200, 100), (200, 30, 60)).save(tmp_path / "first.png")
    result = run_recipe(toy_recipe(output, f"rollout.first_frames='{tmp_path}/first.png'"))
    (video,) = result.videos
    frames = read_video(result.folder.path / str(video.file))
    assert frames.shape == (25, 3, 64, 64)
    assert (frames[0].float().mean(dim=(1, 2)) - torch.tensor([200.0, 30.0, 60.0])).abs().max() < 8


def test_rollout_continues_a_video(output: Path) -> None:
    first = run_recipe(toy_recipe(output))
    start = first.folder.path / str(first.videos[0].file)
    longer = run_recipe(
        toy_recipe(output, f"rollout.first_frames='{start}'", "rollout.latent_frames=10", "rollout.samples=2")
    )
    for video in longer.videos:
        frames = read_video(longer.folder.path / str(video.file))
        assert len(frames) == 1 + 4 * 9
    with pytest.raises(RecipeError, match="nothing is left to generate"):
        run_recipe(toy_recipe(output, f"rollout.first_frames='{start}'"))
