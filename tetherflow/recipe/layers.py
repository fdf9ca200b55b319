"""How a recipe is put together: the file, what it extends, and what the command line sets."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Final

from tetherflow.errors import RecipeError
from tetherflow.recipe.bundled import find_recipe
from tetherflow.recipe.source import Key, Origin, Source, parse_value, read_source

_RIVALS: Final[dict[Key, list[frozenset[str]]]] = {
    ("rollout",): [frozenset({"seconds", "latent_frames"}), frozenset({"prompts", "prompts_file"})],
}
"""Keys of which a recipe has one: the layer above that sets one takes the others away."""

_LISTS: Final[set[Key]] = {("stages", "score"), ("stages", "edit")}
"""Keys of lists that may be written without brackets if they have one entry."""


def read_layers(path: Path, overrides: Iterable[str] = ()) -> Source:
    """Read a recipe file over the recipes it extends, and under the overrides of a command line.

    Args:
        path: the recipe file.
        overrides: `key.key=value`, as `--set` takes them; a number names an entry of a list.

    Raises:
        RecipeError: A file cannot be read, recipes extend in a circle, or an override is malformed.
    """
    source = _read_extended(path, ())
    for text in overrides:
        source = _override(source, text)
    return source


def _read_extended(path: Path, above: tuple[Path, ...]) -> Source:
    path_known = path.resolve()
    if path_known in above:
        circle = " → ".join(str(step) for step in (*above[above.index(path_known) :], path_known))
        raise RecipeError(f"recipes extend each other in a circle: {circle}")
    source = read_source(path)
    if "extends" not in source.data:
        return source
    name = source.data.pop("extends")
    where = source.origins.pop(("extends",))
    if not isinstance(name, str):
        raise RecipeError(f"{where.text}: extends: expected a recipe's name or path, got {name!r}")
    try:
        base_path = find_recipe(name, folder=where.folder)
    except RecipeError as error:
        raise RecipeError(f"{where.text}: extends: {error}") from error
    base = _read_extended(base_path, (*above, path_known))
    base.data.pop("description", None)  # it describes the base, not this recipe
    return overlay(base, source)


def overlay(base: Source, top: Source) -> Source:
    """Lay a recipe over another: mappings merge, everything else is replaced.

    A mapping that names another plugin (`use:`) replaces the one below, whose options are its own.
    """
    origins = dict(base.origins)
    return Source(_overlay(base.data, top.data, (), origins, top.origins), origins)


def _overlay(base: Any, top: Any, key: Key, origins: dict[Key, Origin], news: dict[Key, Origin]) -> Any:
    merges = (
        isinstance(base, dict)
        and isinstance(top, dict)
        and top.get("use", base.get("use")) == base.get("use")
    )
    if not merges:
        _forget(origins, key)
        origins.update({place: origin for place, origin in news.items() if place[: len(key)] == key})
        return top
    merged = dict(base)
    for name, value in top.items():
        _displace_rivals(merged, key, name, origins, beside=top)
        below = merged.get(name)
        merged[name] = _overlay(below, value, (*key, name), origins, news)
    return merged


def _displace_rivals(
    section: dict[str, Any], key: Key, name: str, origins: dict[Key, Origin], beside: Collection[str] = ()
) -> None:
    """Take away what cannot stand beside a name, unless it is `beside` it in its layer: that is refused."""
    for group in _RIVALS.get(key, ()):
        if name in group:
            for rival in group - {name, *beside}:
                section.pop(rival, None)
                _forget(origins, (*key, rival))


def _forget(origins: dict[Key, Origin], key: Key) -> None:
    for place in [place for place in origins if place[: len(key)] == key]:
        del origins[place]


def _override(source: Source, text: str) -> Source:
    """Apply one `key.key=value`."""
    dotted, equals, value = text.partition("=")
    option = f"--set {text}"
    names = dotted.strip().split(".")
    if not equals or not all(names):
        raise RecipeError(
            f"{option}: expected KEY=VALUE, such as rollout.seconds=5 or stages.edit.0.tau=0.35"
        )
    if names == ["extends"]:
        raise RecipeError(f"{option}: 'extends' belongs into a file; name the other recipe instead")
    try:
        parsed = parse_value(value)
    except RecipeError as error:
        raise RecipeError(f"{option}: {error}") from error
    origins = dict(source.origins)
    data = _assign(source.data, (), names, parsed, Origin(option, Path.cwd()), origins)
    return Source(data, origins)


def _assign(
    data: Any, key: Key, names: list[str], value: Any, origin: Origin, origins: dict[Key, Origin]
) -> Any:
    """Copy data with one value set, at the place that `names` leads to from `key`."""
    if not names:
        _forget(origins, key)
        origins[key] = origin
        return value
    name, rest = names[0], names[1:]
    if key in _LISTS and isinstance(data, str | dict) and name.isdecimal():
        data = [data]  # the short form of a list of one
    if isinstance(data, list):
        here = ".".join(map(str, key))
        if not name.isdecimal() or int(name) > len(data):
            raise RecipeError(
                f"{origin.text}: '{here}' is a list of {len(data)}; name an entry by its number, "
                f"such as {here}.0 (a new one is {here}.{len(data)})"
            )
        index = int(name)
        below = data[index] if index < len(data) else None
        changed = _assign(below, (*key, index), rest, value, origin, origins)
        return [*data[:index], changed, *data[index + 1 :]]
    if isinstance(data, str) and key[:1] in (("stages",), ("backbone",)):
        data = {"use": data}  # the short form of a plugin without options
    if data is None:
        data, origins[key] = {}, origin
    if not isinstance(data, dict):
        raise RecipeError(
            f"{origin.text}: '{'.'.join(map(str, key))}' is the value {data!r} and has no '{name}'"
        )
    section = dict(data)
    _displace_rivals(section, key, name, origins)
    section[name] = _assign(section.get(name), (*key, name), rest, value, origin, origins)
    return section
