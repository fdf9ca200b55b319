"""How a recipe is put together: extends, merging, and the command line's overrides."""

from __future__ import annotations

from pathlib import Path

import pytest

from tetherflow.errors import RecipeError
from tetherflow.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("toy")

BASE = """\
backbone: {use: toy, weights_seed: 3}
cache: {budget: 9, regions: {sink: 3, recent: 6}}
stages: {evict: sink-window}
rollout: {latent_frames: 6, prompts: [one, two], seed: 5}
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


def write(base: Path, text: str, name: str = "mine.yaml") -> Path:
    path = base.parent / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_mappings_merge_and_lists_are_replaced(base: Path) -> None:
    recipe = load_recipe(write(base, "extends: base.yaml\nrollout: {prompts: [three]}\n"))
    assert recipe.rollout.prompts == ["three"]
    assert recipe.rollout.seed == 5
    assert recipe.backbone.options["weights_seed"] == 3


def test_path_is_relative_to_the_file_that_extends(base: Path) -> None:
    child = write(base, "extends: ../base.yaml\nrollout: {seed: 6}\n", "sub/child.yaml")
    grandchild = write(base, "extends: sub/child.yaml\n", "grandchild.yaml")
    assert load_recipe(child).rollout.seed == 6
    assert load_recipe(grandchild).rollout.seed == 6


def test_shipped_recipe_by_name_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "x", "extends: tethercache\nbackbone: toy\nrollout: {seconds: 2}\n")
    assert load_recipe(path).rollout.seconds == 2
    assert load_recipe(path.name).cache.regions.memory == 14


def test_other_plugin_does_not_inherit_options(base: Path) -> None:
    path = write(base, "extends: tethercache\nbackbone: toy\nstages: {edit: [{use: tame, tau: 0.1}]}\n")
    recipe = load_recipe(path, ["stages.score=[relevance]", "backbone.use=toy"])
    assert recipe.stages.edit[0].options == {"tau": 0.1}
    changed = write(base, f"extends: {base}\nbackbone: {{use: mini}}\n", "changed.yaml")
    # `weights_seed` belongs to toy; kept, it would be an unknown option of mini.
    assert "weights_seed" not in load_recipe(changed).backbone.options


def test_rivals_take_each_other_away(base: Path) -> None:
    recipe = load_recipe(base, ["rollout.seconds=5"])
    assert (recipe.rollout.seconds, recipe.rollout.latent_frames) == (5, None)
    (base.parent / "p.txt").write_text("from a file\n\n  and another  \n")
    recipe = load_recipe(write(base, "extends: base.yaml\nrollout: {prompts_file: p.txt}\n"))
    assert recipe.rollout.prompts == ["from a file", "and another"]


def test_rivals_in_one_file_are_refused(base: Path) -> None:
    """What it extends notwithstanding."""
    (base.parent / "p.txt").write_text("from a file\n")
    for both in ("seconds: 3, latent_frames: 9", "prompts: [mine], prompts_file: p.txt"):
        with pytest.raises(RecipeError, match=r"mine\.yaml:2: .*give either .* both are given"):
            load_recipe(write(base, f"extends: base.yaml\nrollout: {{{both}}}\n"))


def test_a_prompts_file_has_a_prompt_a_line(base: Path) -> None:
    """Whatever an editor puts before the first, and whatever else breaks lines elsewhere."""
    (base.parent / "p.txt").write_bytes("\ufeffone\r\ntwo\x0bhalves\u2028here\n".encode())
    recipe = load_recipe(write(base, "extends: base.yaml\nrollout: {prompts_file: p.txt}\n"))
    assert recipe.rollout.prompts == ["one", "two\x0bhalves\u2028here"]


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "x" * 300])
def test_names_that_cannot_be(base: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="no recipe"):
        load_recipe(name)
    for key in ("prompts_file", "first_frames"):
        with pytest.raises(RecipeError, match=f"rollout.{key}: "):
            load_recipe(write(base, f"extends: base.yaml\nrollout: {{{key}: {name}}}\n"))
    assert load_recipe(base, [f"output.folder={name}"]).output.folder == str(Path.cwd() / name)


def test_a_list_of_one_may_be_written_without_brackets(base: Path) -> None:
    for written in ("tame", "{use: tame, tau: 0.9}", "[tame]"):
        path = write(base, f"extends: tethercache\nstages: {{edit: {written}}}\n")
        edit = load_recipe(path, ["stages.edit.0.tau=0.3"]).stages.edit
        assert [(entry.use, entry.options) for entry in edit] == [("tame", {"tau": 0.3})]


def test_prompts_file_is_relative_to_the_recipe(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.txt").write_text("here\n")
    path = write(base, BASE.replace("prompts: [one, two]", "prompts_file: p.txt"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load_recipe(path).rollout.prompts == ["here"]
    (elsewhere / "q.txt").write_text("there\n")
    assert load_recipe(path, ["rollout.prompts_file=q.txt"]).rollout.prompts == ["there"]


def test_description_is_not_inherited(base: Path) -> None:
    base.write_text(BASE + "description: the base\n")
    assert load_recipe(base).description == "the base"
    assert load_recipe(write(base, "extends: base.yaml\n")).description == ""


def test_circle(base: Path) -> None:
    write(base, "extends: b.yaml\n", "a.yaml")
    write(base, "extends: a.yaml\n", "b.yaml")
    with pytest.raises(RecipeError, match=r"in a circle: .*a\.yaml → .*b\.yaml → .*a\.yaml"):
        load_recipe(base.parent / "a.yaml")


def test_extends_nothing_that_is_there(base: Path) -> None:
    path = write(base, "extends: tethercash\n")
    with pytest.raises(RecipeError, match=r"mine\.yaml:1: extends: no recipe .*did you mean 'tethercache'"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("rollout.seed=7", 7),
        ("rollout.seed= 7", 7),
        ("rollout.prompts.1=zwei", ["one", "zwei"]),
        ("rollout.prompts.2=three", ["one", "two", "three"]),
        ("rollout.prompts=[a=b, c]", ["a=b", "c"]),
        ("rollout.prompts=['x: y']", ["x: y"]),
    ],
)
def test_override(base: Path, override: str, read: object) -> None:
    rollout = load_recipe(base, [override]).rollout
    assert read in (rollout.seed, rollout.prompts)


def test_overrides_apply_in_order_and_last(base: Path) -> None:
    path = write(base, "extends: base.yaml\nrollout: {seed: 1}\n")
    assert load_recipe(path, ["rollout.seed=2", "rollout.seed=3"]).rollout.seed == 3


def test_override_reaches_into_the_short_form_of_a_plugin(base: Path) -> None:
    path = write(base, "extends: tethercache\nbackbone: toy\nstages: {edit: [tame]}\n")
    recipe = load_recipe(
        path, ["stages.edit.0.tau=0.35", "backbone.layers=1", "stages.score.0.temperature=2"]
    )
    assert recipe.stages.edit[0].options == {"tau": 0.35}
    assert recipe.backbone.options["layers"] == 1
    assert recipe.stages.score[0].options == {"temperature": 2.0}


def test_override_can_take_a_stage_away(base: Path) -> None:
    path = write(base, "extends: tethercache\nbackbone: toy\n")
    recipe = load_recipe(
        path,
        ["stages.select=null", "stages.score=[]", "stages.edit=null", "stages.evict=sink-window",
         "cache.regions={sink: 3}"],
    )  # fmt: skip
    assert recipe.stages.select is None
    assert recipe.cache.regions.recent == 18


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.seed", "expected KEY=VALUE"),
        ("=5", "expected KEY=VALUE"),
        ("rollout..seed=5", "expected KEY=VALUE"),
        ("rollout.seed={", "cannot read the value"),
        ("rollout.seed.deep=1", "'rollout.seed' is the value 5 and has no 'deep'"),
        ("rollout.prompts.9=x", "'rollout.prompts' is a list of 2; name an entry by its number"),
        ("rollout.prompts.first=x", "'rollout.prompts' is a list of 2"),
        ("extends=fifo", "'extends' belongs into a file"),
        ("rollouts.seed=5", "--set rollouts.seed=5: rollouts: unknown key; did you mean 'rollout'?"),
    ],
)
def test_override_that_means_nothing(base: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(base, [override])
    assert message in str(caught.value)
