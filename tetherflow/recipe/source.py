"""Reading a recipe file: YAML that carries data only, with the line of every value."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import attrs
import yaml

from tetherflow.errors import RecipeError

Key = tuple[str | int, ...]
"""Where a value stands in a recipe: mapping keys and list indices from the top."""


@attrs.frozen
class Origin:
    """Where a value was written.

    Attributes:
        text: file and line, or the command-line option.
        folder: the folder to which a path written there is relative.
    """

    text: str
    folder: Path


@attrs.frozen
class Source:
    """Recipe data with the origin of each value.

    Attributes:
        data: mappings, lists, strings, numbers, booleans and None.
        origins: by place; a place that is missing has its parent's origin.
    """

    data: dict[str, Any]
    origins: dict[Key, Origin]

    def origin(self, key: Key) -> Origin | None:
        """Where the value at a place was written, or else the nearest value around it."""
        for end in range(len(key), -1, -1):
            if key[:end] in self.origins:
                return self.origins[key[:end]]
        return None

    def newest(self, key: Key) -> Origin | None:
        """Where a value, or the part of it that was written last by another file or option, was written.

        Origins are kept in the order of the layers: what a layer writes comes after all below it.
        """
        own = self.origin(key)
        inside = [origin for place, origin in self.origins.items() if place[: len(key)] == key]
        if own is None or not inside or _file(inside[-1]) == _file(own):
            return own
        return inside[-1]


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases and dates, and with `1e-4` read as a number."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            # An alias may expand without bound; `extends` is how recipes share.
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not allowed in a recipe; use 'extends' to share",
                problem_mark=self.peek_event().start_mark,  # type: ignore[no-untyped-call]
            )
        return super().compose_node(parent, index)


_FLOAT: Final = "tag:yaml.org,2002:float"
_COLLECTIONS: Final = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}
_TIMESTAMP: Final = "tag:yaml.org,2002:timestamp"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_exponents(kind: type[yaml.SafeLoader] | type[yaml.SafeDumper]) -> None:
    """Let a loader take `1e-4` for a number, or a dumper know that: YAML 1.1 wants a dot, people do not."""
    pattern = re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
    kind.add_implicit_resolver(_FLOAT, pattern, list("-+0123456789"))


read_exponents(_Loader)


def read_source(path: Path) -> Source:
    """Read a recipe file.

    Raises:
        RecipeError: It is missing, not UTF-8, not YAML, not a mapping, or holds anything but plain data.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})"
        ) from error
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror or error}") from error
    folder = path.resolve().parent
    origins: dict[Key, Origin] = {}
    try:
        data = _parse(text, lambda mark: Origin(f"{path}:{mark.line + 1}", folder), origins)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{path}{line}: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not YAML: {error}") from error
    except RecursionError as error:
        raise RecipeError(f"{path}: nested too deeply to be a recipe") from error
    if not isinstance(data, dict):
        raise RecipeError(
            f"{path}: a recipe is a mapping, such as 'extends: tethercache'; this file holds none"
        )
    return Source(data, origins)


def parse_value(text: str) -> Any:
    """Parse the value of a `--set` option as YAML: `5` is a number, `[a, b]` a list, anything else a string.

    Raises:
        RecipeError: It is not YAML of plain data.
    """
    try:
        return _parse(text, lambda mark: Origin("", Path()), {})
    except yaml.YAMLError as error:
        problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error)
        raise RecipeError(f"cannot read the value {text[:60]!r}: {problem}") from error
    except RecursionError as error:
        raise RecipeError(f"the value {text[:60]!r} is nested too deeply") from error


def _parse(text: str, origin: Callable[[yaml.Mark], Origin], origins: dict[Key, Origin]) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else _construct(loader, node, (), origin, origins)
    finally:
        loader.dispose()


def _construct(
    loader: _Loader,
    node: yaml.Node,
    key: Key,
    origin: Callable[[yaml.Mark], Origin],
    origins: dict[Key, Origin],
) -> Any:
    """Turn a YAML node into plain data, noting where each value stands."""
    origins[key] = origin(node.start_mark)
    if isinstance(node, yaml.CollectionNode) and node.tag not in _COLLECTIONS:
        raise _not_plain(node)
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for name_node, value_node in node.value:
            name = loader.construct_object(name_node)
            if not isinstance(name, str):
                raise yaml.MarkedYAMLError(
                    problem=f"key {name!r} is not a word", problem_mark=name_node.start_mark
                )
            if name in mapping:
                raise yaml.MarkedYAMLError(
                    problem=f"key '{name}' appears twice", problem_mark=name_node.start_mark
                )
            mapping[name] = _construct(loader, value_node, (*key, name), origin, origins)
            origins[*key, name] = origin(name_node.start_mark)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_construct(loader, item, (*key, i), origin, origins) for i, item in enumerate(node.value)]
    value = loader.construct_object(node)
    if value is not None and not isinstance(value, (str, int, float, bool)):
        raise _not_plain(node)
    return _joined(value, node) if isinstance(value, str) else value


def _joined(text: str, node: yaml.Node) -> str:
    """Text whose characters are whole: JSON writes some in two halves, which YAML does not join."""
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError as error:
        raise yaml.MarkedYAMLError(
            problem=f"{text!r} has half of a character; write all of it", problem_mark=node.start_mark
        ) from error


def _file(origin: Origin) -> str:
    return origin.text.rpartition(":")[0]


def _not_plain(node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(
        problem=f"a value of type {node.tag} is not allowed in a recipe", problem_mark=node.start_mark
    )
