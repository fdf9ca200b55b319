"""Bad recipes: one message says where, which value, and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from tetherflow.errors import RecipeError
from tetherflow.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("toy")

GOOD = """\
backbone: {use: toy}
cache:
  budget: 21
  regions: {sink: 3, memory: 14, recent: 4}
stages:
  evict: {use: recall-window}
  score:
    - {use: relevance}
  select: {use: top-m}
  edit:
    - {use: tame, tau: 0.6}
rollout: {seconds: 2, prompts: [words]}
"""


def message_of(tmp_path: Path, old: str, new: str, *overrides: str) -> str:
    path = tmp_path / "mine.yaml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    message = str(caught.value)
    assert "pydantic" not in message
    assert "mine.yaml" in message or "--set" in message
    return message


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        # An option out of range: the file and line, the path in the file, the value, the allowed range.
        ("tau: 0.6", "tau: 1.7", ["mine.yaml:11: stages.edit.0.tau: 1.7 is out of range", "at least 0 and at most 1"]),
        ("tau: 0.6", "tau: .nan", ["stages.edit.0.tau: nan is out of range"]),
        ("tau: 0.6", "tau: high", ["stages.edit.0.tau: 'high' is not a number", "at least 0 and at most 1"]),
        ("tau: 0.6", "tau: '0.6'", ["'0.6' is not a number"]),
        ("tau: 0.6", "tou: 0.6", ["stages.edit.0.tou: unknown key; did you mean 'tau'?"]),
        # Schedules: both ends of their range must suit the option.
        ("tau: 0.6", "tau: {use: ramp, from: 0.3, to: 1.2, seconds: 9}", ["mine.yaml:11: stages.edit.0.tau: 1.2 is out of range; allowed: at least 0 and at most 1"]),
        ("tau: 0.6", "tau: {use: drift-distance, low: -1, high: 1}", ["stages.edit.0.tau: -1.0 is out of range; allowed: at least 0"]),
        ("tau: 0.6", "tau: {use: rmap}", ["stages.edit.0.tau.use: no schedule plugin named 'rmap'", "did you mean 'ramp'?", "pip install"]),
        ("tau: 0.6", "tau: {use: tame}", ["stages.edit.0.tau.use: plugin 'tame' is of stage 'edit' and cannot be used as a schedule"]),
        ("use: top-m", "use: ramp", ["stages.select.use: plugin 'ramp' is of stage 'schedule' and cannot be used as 'select'"]),
        ("tau: 0.6", "tou: {use: ramp, from: 0, to: 1, seconds: 9}", ["stages.edit.0.tou: unknown key; did you mean 'tau'?"]),
        ("tau: 0.6", "tau: {use: ramp, from: 0, to: 1}", ["stages.edit.0.tau.seconds: is missing; allowed: above 0"]),
        ("tau: 0.6", "tau: {use: ramp, from: 0, to: 1, seconds: 9, start: soon}", ["stages.edit.0.tau.start: 'soon' is no time in a video"]),
        ("tau: 0.6", "tau: {use: ramp, from: low, to: 1, seconds: 9}", ["stages.edit.0.tau.from: 'low' is not a number"]),
        ("tau: 0.6", "tau: {use: drift-distance, low: 0, high: 1, far: 0.1}", ["stages.edit.0.tau: 'far' 0.1 is not above 'near' 0.13"]),
        ("use: recall-window", "use: recall-window, when: {use: ramp, from: 0, to: 1, seconds: 9}", ["stages.evict.when: takes no number, so it cannot be scheduled"]),
        ("use: relevance", "use: participation, window: {use: ramp, from: 1, to: 4, seconds: 9}", ["stages.score.0.window: is read once, before the first chunk"]),
        ("use: relevance", "use: heavy-hitter, queries: {use: drift-distance, low: 1, high: 4}", ["stages.score.0.queries: takes a whole number, which 'drift-distance' cannot give"]),
        ("use: relevance", "use: heavy-hitter, weight: {use: drift-distance, low: 1, high: 4}", ["stages.score.0.weight: may be read in the plugin's 'revise', too"]),
        ("  edit:\n", "  merge: {use: ema-sink, decay: {use: drift-distance, low: 0, high: 1}}\n  edit:\n", ["stages.merge.decay: belongs to stage 'merge', which is not shown what 'drift-distance' measures"]),
        # Names of stages.
        ("use: relevance", "use: relevence", ["stages.score.0.use: no stage plugin named 'relevence'",
                                              "did you mean 'relevance'?", "pip install"]),
        ("use: top-m", "use: tame", ["stages.select.use: plugin 'tame' is of stage 'edit'"]),
        ("use: toy", "use: tiny", ["backbone.use: no backbone plugin named 'tiny'"]),
        ("use: relevance", "temperature: 2", ["stages.score.0: expected a plugin's name, or {use: NAME, …}"]),
        ("{use: toy}", "7", ["backbone: expected a plugin's name", "got 7"]),
        # Regions.
        ("recent: 4", "recent: 5", ["mine.yaml:4: cache.regions: sink 3 + memory 14 + recent 5 = 22, but the budget is 21"]),
        ("memory: 14, recent: 4", "memory: 18", ["sink 3 + memory 18 = 21 leaves nothing of the budget"]),
        ("sink: 3", "sink: -1", ["cache.regions.sink: -1 is out of range; allowed: at least 0"]),
        ("sink: 3", "sinks: 3", ["cache.regions.sinks: unknown key; did you mean 'sink'?"]),
        ("budget: 21", "budget: 0", ["cache.budget: 0 is out of range; allowed: at least 1"]),
        ("memory: 14", "memory: 15", ["= 22, but the budget is 21"]),
        ("{sink: 3, memory: 14, recent: 4}", "{sink: 19}", ["a chunk of 3 frames does not fit into a recent region of 2"]),
        ("{sink: 3, memory: 14, recent: 4}", "{sink: 3}", ["'recall-window' recalls into memory"]),
        ("sink: 3, memory: 14", "sink: 3, bank: 1, memory: 13", ["cache.regions: the regions give the bank 1 frames, but no"]),
        ("memory: 14", "bank: 1, memory: 14", ["sink 3 + bank 1 + memory 14 + recent 4 = 22, but the budget is 21"]),
        ("budget: 21", "unit: row", ["cache.unit: 'row' is none of frame, token, {rows: N}"]),
        ("budget: 21", "unit: {rows: 0}", ["cache.unit: {'rows': 0} is none of frame, token, {rows: N} with N at"]),
        # Two selectors or none, and their like.
        ("select: {use: top-m}", "select: [top-m, top-m]", ["stages.select: takes exactly one plugin; 2 are given"]),
        ("  select: {use: top-m}\n", "", ["stages: 'score' needs exactly one 'select' plugin"]),
        ("  score:\n    - {use: relevance}\n", "", ["stages: 'select' needs at least one 'score' plugin"]),
        ("evict: {use: recall-window}", "evict: []", ["stages.evict: takes exactly one plugin; 0 are given"]),
        ("evict: {use: recall-window}", "evict: [recall-window, sink-window]", ["2 are given"]),
        ("  evict: {use: recall-window}\n", "", ["stages.evict: is missing"]),
        ("use: recall-window", "use: sink-window", ["stages: selector 'top-m' would never run"]),
        ("- {use: relevance}", "- relevance\n    - relevance", ["plugin 'relevance' appears 2 times"]),
        # Lengths and prompts.
        ("seconds: 2", "seconds: 0", ["rollout.seconds: 0 is out of range; allowed: above 0"]),
        ("seconds: 2", "seconds: -3", ["rollout.seconds: -3 is out of range; allowed: above 0"]),
        ("seconds: 2", "seconds: .inf", ["rollout.seconds: inf is out of range"]),
        ("seconds: 2", "latent_frames: 0", ["rollout.latent_frames: 0 is out of range; allowed: at least 1"]),
        ("seconds: 2", "latent_frames: 2.5", ["rollout.latent_frames: 2.5 is not a whole number"]),
        ("seconds: 2", "seconds: 2, latent_frames: 3", ["rollout: give either 'seconds' or 'latent_frames'; both"]),
        ("seconds: 2, ", "", ["rollout: give either 'seconds' or 'latent_frames'; neither"]),
        ("prompts: [words]", "prompts: []", ["rollout.prompts: needs at least 1 entry"]),
        ("prompts: [words]", "prompts: ['']", ["rollout.prompts.0: is blank"]),
        ("prompts: [words]", "prompts: words", ["rollout.prompts: 'words' is not a list"]),
        ("prompts: [words]", "prompts: [3]", ["rollout.prompts.0: 3 is not text"]),
        (", prompts: [words]", "", ["rollout.prompts: is missing"]),
        ("prompts: [words]", "prompts_file: none.txt", ["rollout.prompts_file: cannot read", "none.txt"]),
        ("prompts: [words]", "prompts: [a], prompts_file: b.txt", ["give either 'prompts' or 'prompts_file'"]),
        ("seconds: 2", "seconds: 2, first_frames: none.png", ["rollout.first_frames: there is no file", "none.png"]),
        ("seconds: 2", "seconds: 2, chunk_frames: 5", ["a chunk of 5 frames does not fit into a recent region of 4"]),
        # The rest.
        ("rollout: {", "runtime: {device: gpu}\nrollout: {", ["runtime.device: 'gpu' is none of auto, cpu, cuda, cuda:N"]),
        ("rollout: {", "runtime: {numerics: fats}\nrollout: {", ["'fats' is none of fast, parity; did you mean 'fast'?"]),
        ("rollout: {", "runtime: {numerics: parity, matmul: fp8}\nrollout: {", ["runtime.matmul: 'fp8' rounds otherwise"]),
        ("rollout: {", "runtime: {numerics: parity, compile: always}\nrollout: {", ["runtime.compile: 'always' rounds otherwise"]),
        ("rollout: {", "runtime: {devices: 2, device: 'cuda:1'}\nrollout: {", ["names one device, but devices is 2"]),
        ("rollout: {", "output: here\nrollout: {", ["output: 'here' is not a mapping"]),
        ("rollout: {", "rolout: {", ["mine.yaml:12: rolout: unknown key; did you mean 'rollout'"]),
    ],
)  # fmt: skip
def test_message(tmp_path: Path, old: str, new: str, parts: list[str]) -> None:
    message = message_of(tmp_path, old, new)
    for part in parts:
        assert part in message


def test_override_is_named_as_the_place(tmp_path: Path) -> None:
    message = message_of(tmp_path, "tau: 0.6", "tau: 0.6", "stages.edit.0.tau=3")
    assert message.startswith("--set stages.edit.0.tau=3: stages.edit.0.tau: 3 is out of range")


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    message = message_of(tmp_path, "tau: 0.6", "tau: 2", "rollout.seconds=0", "stages.score.0.use=nope")
    assert message.splitlines()[0] == "recipe 'mine.yaml' has 3 problems:"
    assert len(message.splitlines()) == 4


def test_error_in_an_extended_file_names_that_file(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(GOOD.replace("tau: 0.6", "tau: 2"))
    child = tmp_path / "child.yaml"
    child.write_text("extends: base.yaml\nrollout: {seed: 1}\n")
    with pytest.raises(RecipeError, match=r"base\.yaml:11: stages\.edit\.0\.tau"):
        load_recipe(child)


def test_prompts_file_without_prompts(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n  \n")
    assert "holds no prompt" in message_of(tmp_path, "prompts: [words]", "prompts_file: empty.txt")


def test_no_such_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"no recipe 'tethercahce'.*did you mean 'tethercache'"):
        load_recipe("tethercahce")
    with pytest.raises(RecipeError, match="is a folder; name a recipe file"):
        load_recipe(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ("cache.regions.recent=5", "cache.regions: sink 3 + memory 14 + recent 5 = 22"),
        ("stages.select=null", "stages: 'score' needs exactly one 'select' plugin"),
    ],
)
def test_a_sections_problem_is_told_where_its_newest_part_was_written(change: str, place: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("tethercache", [change])
    assert str(caught.value).startswith(f"--set {change}: {place}")


def test_units_below_a_frame_are_refused_where_a_stage_takes_none() -> None:
    with pytest.raises(RecipeError, match=r"cache\.unit: 'fademem' keeps whole frames; set it to frame"):
        load_recipe("fademem", ["backbone.use=toy", "cache.unit=token"])


def test_a_list_whose_only_entry_is_wrong_is_not_said_to_be_too_short() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("fifo", ["backbone.use=synthetic", "backbone.steps=[2000]"])
    assert "backbone.steps.0: 2000 is out of range" in str(caught.value)
    assert "entry" not in str(caught.value)
