"""The recipes that ship with Tetherflow, found beside the package or inside the wheel."""

from __future__ import annotations

from os.path import expanduser, isdir, isfile  # which take a name that cannot be for one that is not there
from pathlib import Path

from tetherflow.errors import RecipeError
from tetherflow.plugins import nearest

_PACKAGE = Path(__file__).resolve().parent.parent


def bundled_recipes() -> dict[str, Path]:
    """The shipped recipes, by name."""
    # A wheel carries them inside the package; a clone and an editable install have them beside it.
    for folder in (_PACKAGE / "_recipes", _PACKAGE.parent / "recipes"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def find_recipe(name: str, *, folder: Path) -> Path:
    """Find a recipe by a file's path or by the name of a shipped one.

    Args:
        name: a path, or a shipped recipe's name. A file of that name in `folder` comes first.
        folder: the folder to which a path is relative.

    Raises:
        RecipeError: There is neither.
    """
    path = folder / expanduser(name)
    if isfile(path):
        return path
    shipped = bundled_recipes()
    if name in shipped:
        return shipped[name]
    if isdir(path):
        raise RecipeError(f"'{name}' is a folder; name a recipe file, such as {Path(name) / 'recipe.yaml'}")
    raise RecipeError(
        f"no recipe '{name}': there is no such file, and no shipped recipe of that name"
        f"{nearest(name, shipped)} (shipped: {', '.join(shipped) or 'none'})"
    )
