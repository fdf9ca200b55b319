"""Discovery of plugins through entry points, loaded only when they are named."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Final

import attrs

from tetherflow.backbone import Backbone
from tetherflow.errors import PluginError
from tetherflow.schedules import SCHEDULE, Schedule
from tetherflow.stages import Stage, StageName

POLICIES: Final = "tetherflow.policies"
"""Entry-point group of stage plugins and schedules; each names a subclass of `Stage` or `Schedule`."""

BACKBONES: Final = "tetherflow.backbones"
"""Entry-point group of backbones; each names a subclass of `Backbone`."""

_BASES: Final[dict[str, tuple[type, ...]]] = {POLICIES: (Stage, Schedule), BACKBONES: (Backbone,)}
_KINDS: Final = {POLICIES: "stage", BACKBONES: "backbone"}


@attrs.frozen
class PluginInfo:
    """What is known of one registration.

    Attributes:
        name: the name a recipe uses.
        group: the entry-point group.
        stage: evict, score, select, edit or merge; `schedule` or `backbone`; None if it cannot be loaded.
        distribution: the distribution that registers it, as pip names it.
        version: that distribution's version.
        target: where the class lives, `module:Class`.
        summary: first line of the class's docstring; empty if it cannot be loaded.
        error: why it cannot be used; None if it can.
    """

    name: str
    group: str
    stage: str | None
    distribution: str
    version: str
    target: str
    summary: str
    error: str | None


def installed(group: str) -> dict[str, list[EntryPoint]]:
    """Find what is registered in a group, without importing any of it.

    Args:
        group: `POLICIES` or `BACKBONES`.

    Returns:
        Registrations by name; a name that two distributions claim has two.
    """
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=group):
        claims = found.setdefault(entry.name, [])
        # A clone on the path beside its installed self shows the same registration twice.
        if (entry.value, _distribution(entry)) not in [(e.value, _distribution(e)) for e in claims]:
            claims.append(entry)
    return dict(sorted(found.items()))


def load_stage(name: str, stage: StageName) -> type[Stage]:
    """Load the stage plugin of a name.

    Args:
        name: the plugin's name, as a recipe spells it.
        stage: the stage in which the recipe uses it.

    Raises:
        PluginError: It is not installed, is claimed twice, cannot be imported, or is of another stage.
    """
    cls = _load(POLICIES, name)
    if not issubclass(cls, Stage) or cls.stage != stage:
        raise PluginError(f"plugin '{name}' is of stage '{_stage_of(cls)}' and cannot be used as '{stage}'")
    return cls


def load_schedule(name: str) -> type[Schedule]:
    """Load the schedule of a name.

    Raises:
        PluginError: It is not installed, is claimed twice, cannot be imported, or is a stage.
    """
    cls = _load(POLICIES, name, SCHEDULE)
    if not issubclass(cls, Schedule):
        raise PluginError(f"plugin '{name}' is of stage '{_stage_of(cls)}' and cannot be used as a schedule")
    return cls


def load_backbone(name: str) -> type[Backbone]:
    """Load the backbone of a name.

    Raises:
        PluginError: It is not installed, is claimed twice, or cannot be imported.
    """
    cls = _load(BACKBONES, name)
    if not issubclass(cls, Backbone):  # as above
        raise PluginError(f"'{name}' is not a backbone")
    return cls


def list_plugins() -> list[PluginInfo]:
    """Describe every registration, broken ones included; loads each, so that its stage is known."""
    return [
        _describe(group, entry, claims)
        for group in (BACKBONES, POLICIES)
        for claims in installed(group).values()
        for entry in claims
    ]


def provider(group: str, name: str) -> tuple[str, str]:
    """Which distribution, and which version of it, registers a name; empty strings if none does."""
    claims = installed(group).get(name, [])
    return (_distribution(claims[0]), _version(claims[0])) if claims else ("", "")


def nearest(word: str, known: Iterable[str]) -> str:
    """The known words that are nearest to one, as the end of an error message; empty if none is near."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(match) for match in close)}?" if close else ""


def _load(group: str, name: str, kind: str | None = None) -> type:
    kind = kind or _KINDS[group]
    known = installed(group)
    claims = known.get(name, [])
    if not claims:
        listing = ", ".join(known) or "none"
        raise PluginError(
            f"no {kind} plugin named '{name}' is installed{nearest(name, known)} (installed: {listing}). "
            "If a package provides it, `pip install` that package; `tetherflow plugins` lists what there is"
        )
    if len(claims) > 1:
        raise PluginError(_claimed_twice(name, claims))
    return _import(group, claims[0])


def _import(group: str, entry: EntryPoint) -> type:
    """Import what an entry point names, and check that it is what its group promises."""
    origin = f"{entry.value}, from {_distribution(entry)} {_version(entry)}"
    where = f"{_KINDS[group]} plugin '{entry.name}' ({origin})"
    try:
        loaded: object = entry.load()
    except (Exception, SystemExit) as error:  # a package may do anything when it is imported
        raise PluginError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
    bases = _BASES[group]
    if not isinstance(loaded, type) or not issubclass(loaded, bases):
        wanted = " or ".join(f"tetherflow.{base.__name__}" for base in bases)
        raise PluginError(f"{where} is {loaded!r}, which is not a subclass of {wanted}")
    if group == POLICIES and _stage_of(loaded) is None:
        raise PluginError(
            f"{where} names no stage; derive it from Evictor, Scorer, Selector, Editor or Merger, or from "
            "TimeSchedule or SignalSchedule"
        )
    return loaded


def _describe(group: str, entry: EntryPoint, claims: list[EntryPoint]) -> PluginInfo:
    stage, summary = None, ""
    error = _claimed_twice(entry.name, claims) if len(claims) > 1 else None
    try:
        cls = _import(group, entry)
    except PluginError as problem:
        error = error or str(problem)
    else:
        stage = _stage_of(cls) or "backbone"
        summary = inspect.cleandoc(cls.__doc__ or "").partition("\n")[0]
    return PluginInfo(
        entry.name, group, stage, _distribution(entry), _version(entry), entry.value, summary, error
    )


def _stage_of(cls: type) -> str | None:
    stage: str | None = getattr(cls, "stage", None)
    return stage


def _claimed_twice(name: str, claims: list[EntryPoint]) -> str:
    owners = " and ".join(f"{_distribution(entry)} {_version(entry)} ({entry.value})" for entry in claims)
    return f"the name '{name}' is registered twice, by {owners}; uninstall one of them"


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "?"


def _version(entry: EntryPoint) -> str:
    return entry.dist.version if entry.dist is not None else "?"
