"""Whether stages make up a policy, and what of the engine's vocabulary the policy then uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Final

from tetherflow.cache.interfaces import Uses
from tetherflow.cache.layout import Layout
from tetherflow.errors import LayoutError, PipelineError
from tetherflow.stages import Editor, Evictor, Merger, Scorer, Selector, Stage

OPTIONAL_HOOKS: Final = ("place", "view", "revise", "switch")
"""Hooks that a stage of any kind may implement beside its own."""
SHARED_HOOKS: Final = ("revise",)
"""Those of them that several stages of a policy may implement; the others have one stage at most."""


def check_kinds(
    evict: object, score: Sequence[object], select: object, edit: Sequence[object], merge: object
) -> None:
    """Refuse stages in each other's place.

    Raises:
        PipelineError: A stage is not of the kind that its place asks for.
    """
    expected: list[tuple[object, type[Stage]]] = [(evict, Evictor), *((stage, Scorer) for stage in score)]
    expected += [(select, Selector)] if select is not None else []
    expected += [(stage, Editor) for stage in edit]
    expected += [(merge, Merger)] if merge is not None else []
    for stage, kind in expected:
        if not isinstance(stage, kind):
            name = getattr(stage, "name", repr(stage))
            raise PipelineError(f"'{name}' is no {kind.__name__} and cannot serve as stage '{kind.stage}'")


def check_fit(
    evict: Evictor,
    score: Sequence[Scorer],
    select: Selector | None,
    edit: Sequence[Editor],
    every: Sequence[Stage],
) -> None:
    """Refuse stages that do not go together.

    Args:
        evict: the evictor.
        score: the scorers.
        select: the selector, if there is one.
        edit: the editors.
        every: all stages.

    Raises:
        PipelineError: A stage would never run, lacks another, or appears twice.
    """
    for name, count in Counter(stage.name for stage in every).items():
        if count > 1:
            raise PipelineError(f"plugin '{name}' appears {count} times; each stage plugin may appear once")
    before: set[str] = set()
    for scorer in score:
        if missing := [name for name in scorer.needs if name not in before]:
            raise PipelineError(f"scorer '{scorer.name}' builds on '{missing[0]}', which must come before it")
        if scorer.needs_query and evict.when == "begin" and evict.destination == "memory":
            raise PipelineError(
                f"scorer '{scorer.name}' needs a pass's queries, but evictor '{evict.name}' lets memory be "
                "decided as a chunk begins; decide in the first pass or at commit"
            )
        before.add(scorer.name)
    if select is None and (score or edit):
        idle = ", ".join(f"'{stage.name}'" for stage in (*score, *edit))
        raise PipelineError(f"{idle} would never run: a pipeline with scorers or editors needs one selector")
    if select is not None and select.when not in (None, evict.when) and evict.destination == "memory":
        raise PipelineError(
            f"selector '{select.name}' decides at '{select.when}', but evictor '{evict.name}' asks at "
            f"'{evict.when}'; set the evictor's 'when' to {select.when}"
        )
    if select is None and evict.destination == "memory":
        raise PipelineError(f"evictor '{evict.name}' sends units to memory, but there is no selector")
    if select is not None and evict.destination != "memory":
        raise PipelineError(
            f"selector '{select.name}' would never run: evictor '{evict.name}' drops what "
            "leaves; use one that sends it to memory, such as 'recall-window'"
        )


def check_regions(uses: Uses, layout: Layout) -> None:
    """Refuse regions, in latent frames, in which a policy would do nothing or could not.

    Raises:
        LayoutError: Memory or bank is missing, or one is there that nothing fills.
    """
    if uses.recall and not layout.memory:
        raise LayoutError("the policy recalls into memory, but the regions give it 0 frames; give it 1")
    if uses.merge and not layout.bank:
        raise LayoutError("the policy merges into the bank, but the regions give it 0 frames; give it 1")
    if layout.bank and not uses.merge:
        raise LayoutError(
            f"the regions give the bank {layout.bank} frames, but no 'merge' stage fills it; set it to 0"
        )


def uses_of(
    stages: Sequence[Stage],
    hooks: Collection[str],
    evict: Evictor,
    select: Selector | None,
    measures: bool = False,
) -> Uses:
    """What a policy of these stages uses.

    Args:
        stages: all of them.
        hooks: the optional hooks that they implement.
        evict: the evictor.
        select: the selector, if there is one.
        measures: whether a schedule reads the newcomers' statistics.

    Raises:
        PipelineError: Two stages note the same thing of a unit, but begin with different values.
    """
    metadata: dict[str, float] = {}
    for stage in stages:
        for name, value in stage.metadata.items():
            if metadata.setdefault(name, value) != value:
                raise PipelineError(
                    f"plugin '{stage.name}' lets metadata '{name}' begin with {value}, another with "
                    f"{metadata[name]}; name one of the two otherwise"
                )
    merges = any(isinstance(stage, Merger) for stage in stages)
    reads_statistics = any(isinstance(stage, Scorer) and stage.reads_statistics for stage in stages)
    edits = any(isinstance(stage, Editor) for stage in stages)
    reads = any(stage.reads_keys for stage in stages)
    return Uses(
        recall=evict.when if select is not None else None,
        edit=edits,
        blend=select is not None and select.blends,
        merge=merges,
        place="place" in hooks,
        view="view" in hooks,
        revise="revise" in hooks,
        eager=evict.eager,
        raw=reads or merges or select is not None or "place" in hooks or "revise" in hooks,
        statistics=reads_statistics or edits or measures,
        key_norms=any(isinstance(stage, Scorer) and stage.reads_norms for stage in stages),
        mean_query=any(isinstance(stage, Scorer) and stage.reads_mean_query for stage in stages),
        decides_at=None if select is None else select.decides_at,
        metadata=metadata,
        whole_frames=next((stage.name for stage in stages if stage.whole_frames), None),
    )
