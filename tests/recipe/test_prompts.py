"""Prompts over time: as a recipe gives them, when they begin, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tetherflow.errors import RecipeError
from tetherflow.recipe import Recipe, dump_recipe, json_schema, load_recipe
from tetherflow.recipe.prompts import TimedPrompt
from tetherflow.recipe.timetable import frame_at

pytestmark = pytest.mark.usefixtures("toy")


def recipe_with(tmp_path: Path, prompts: Any, **rollout: Any) -> Recipe:
    """A toy recipe: 16 frames a second, chunks of 3 latent frames, 20 s unless it says otherwise."""
    if not rollout.keys() & {"seconds", "latent_frames"}:
        rollout["seconds"] = 20
    path = tmp_path / "mine.yaml"
    text = {"extends": "fifo", "backbone": "toy", "rollout": {"prompts": prompts, **rollout}}
    path.write_text("# a line\n" + json.dumps(text, indent=1))
    return load_recipe(path)


def refusal(tmp_path: Path, prompts: Any, **rollout: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe_with(tmp_path, prompts, **rollout)
    assert "pydantic" not in str(caught.value)
    assert "mine.yaml:" in str(caught.value)
    return str(caught.value)


def test_plain_prompts_and_prompts_over_time_stand_side_by_side(tmp_path: Path) -> None:
    timed = [
        {"at": "0s", "prompt": "first"},
        {"at": "7.5s", "prompt": "second", "switch": "recache"},
        {"at": 12, "prompt": "third"},
    ]
    recipe = recipe_with(tmp_path, ["plain", timed])
    assert recipe.rollout.prompts == [
        "plain",
        (
            TimedPrompt(at=0.0, prompt="first", switch="keep"),
            TimedPrompt(at=7.5, prompt="second", switch="recache"),
            TimedPrompt(at=12.0, prompt="third", switch="keep"),
        ),
    ]
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path) == recipe


def test_on_the_command_line() -> None:
    prompts = "rollout.prompts=[[{at: 0s, prompt: a}, {at: 4s, prompt: b, switch: cut}]]"
    (timed,) = load_recipe("fifo", ["backbone.use=toy", prompts]).rollout.prompts
    assert [(one.at, one.switch) for one in timed if not isinstance(one, str)] == [(0, "keep"), (4, "cut")]


@pytest.mark.parametrize(
    ("prompts", "parts"),
    [
        ([[{"at": "2m", "prompt": "a"}]],
         ["rollout.prompts.0.0.at: '2m' is no time in a video; expected seconds, such as 20s or 20"]),
        ([[{"at": -1, "prompt": "a"}]], ["rollout.prompts.0.0.at: -1 is no time"]),
        ([[{"at": True, "prompt": "a"}]], ["True is no time"]),
        ([[{"prompt": "a"}]], ["rollout.prompts.0.0.at: is missing"]),
        ([[{"at": 0}]], ["rollout.prompts.0.0.prompt: is missing"]),
        ([[{"at": 0, "prompt": " "}]], ["rollout.prompts.0.0.prompt: is blank; expected words"]),
        ([[{"at": 0, "prompt": "a", "swich": "keep"}]],
         ["rollout.prompts.0.0.swich: unknown key; did you mean 'switch'?"]),
        (["x", [{"at": 0, "prompt": "a"}, {"at": 2, "prompt": "a", "switch": "flsh"}]],
         ["rollout.prompts.1.1.switch: 'flsh' is none of keep, recache, flush, cut; did you mean 'flush'?"]),
        ([["a"]], ["rollout.prompts.0.0: 'a' is not a mapping"]),
        ([[]], ["rollout.prompts.0: needs at least 1 entry, which begins at 0s"]),
        ([7], ["rollout.prompts.0: 7 is not text"]),
        ([[{"at": "1s", "prompt": "a"}]],
         ["rollout.prompts.0.0.at: the first prompt begins the video, at 0s; not at 1s"]),
        ([[{"at": 0, "prompt": "a", "switch": "flush"}]],
         ["rollout.prompts.0.0.switch: the first prompt begins the video, so nothing switches"]),
        ([[{"at": 0, "prompt": "a"}, {"at": 9, "prompt": "b"}, {"at": "8s", "prompt": "c"}]],
         ["rollout.prompts.0.2.at: 8s is not after 9s, when the prompt before it begins; times ascend"]),
        ([[{"at": 0, "prompt": "a"}, {"at": 19.9, "prompt": "b"}]],
         ["rollout.prompts.0.1.at: 19.9s is past the last chunk's begin; make the video longer"]),
        ([[{"at": 0, "prompt": "a"}, {"at": 4, "prompt": "b"}, {"at": 4.3, "prompt": "c"}]],
         ["rollout.prompts.0.2.at: 4.3s and 4s begin with the same chunk, which can show only one"]),
    ],
)  # fmt: skip
def test_message_says_where_what_and_what_is_right(tmp_path: Path, prompts: Any, parts: list[str]) -> None:
    message = refusal(tmp_path, prompts)
    for part in parts:
        assert part in message
    assert message.count("rollout.prompts") == 1


def test_given_frames_leave_open_where_chunks_begin(tmp_path: Path) -> None:
    (tmp_path / "first.png").write_bytes(b"any")
    close = [[{"at": 0, "prompt": "a"}, {"at": 4, "prompt": "b"}, {"at": 4.3, "prompt": "c"}]]
    assert recipe_with(tmp_path, close, first_frames="first.png")
    same = [[{"at": 0, "prompt": "a"}, {"at": 4.26, "prompt": "b"}, {"at": 4.3, "prompt": "c"}]]
    assert "begin with the same chunk" in refusal(tmp_path, same, first_frames="first.png")


def test_times_are_counted_as_lengths_are() -> None:
    recipe = load_recipe("fifo", ["backbone.use=toy"])
    assert [frame_at(recipe, seconds) for seconds in (0, 0.01, 0.25, 0.26, 20)] == [0, 1, 1, 2, 80]


@given(frame=st.integers(0, 100_000))
def test_a_frames_own_time_is_that_frame(frame: int) -> None:
    recipe = load_recipe("fifo", ["backbone.use=toy"])
    assert frame_at(recipe, frame / 4) == frame
    assert frame_at(recipe, float(f"{frame / 4 + 0.1:.3f}")) == frame + 1


def test_schema_knows_both_ways() -> None:
    plain, timed = json_schema()["$defs"]["Rollout"]["properties"]["prompts"]["items"]["oneOf"]
    assert plain["type"] == "string"
    assert timed == {"type": "array", "items": {"$ref": "#/$defs/TimedPrompt"}}
    assert set(json_schema()["$defs"]["TimedPrompt"]["properties"]) == {"at", "prompt", "switch"}
