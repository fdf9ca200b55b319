"""Everything about one recipe's chunks but how their time compares with another's."""

from __future__ import annotations

import attrs

from tetherflow.bench.parts import measure_parts
from tetherflow.bench.roofline import PRODUCT, Roofline, measure_roofline
from tetherflow.bench.whole import Whole, measure_whole
from tetherflow.recipe import Recipe
from tetherflow.rollout.batches import items_of
from tetherflow.rollout.open_session import Backbones, first_device, open_session, threads_for, tuning_of


@attrs.frozen
class Details:
    """Where a recipe's time and memory go.

    Attributes:
        name: the recipe's name.
        parts: seconds of each part of a steady chunk's denoising and context passes; see `PARTS`.
        roofline: the operations that no chunk can do without, timed alone.
        whole: decoding, encoding, memory, and the way from prompt to file.
    """

    name: str
    parts: dict[str, float]
    roofline: Roofline
    whole: Whole


def measure_details(recipe: Recipe, backbones: Backbones) -> Details:
    """Measure one recipe by itself; its first prompt is used.

    Args:
        recipe: what to measure.
        backbones: those that are loaded already.

    Raises:
        WeightsError: The backbone's weights cannot be used.
    """
    device = first_device(recipe)
    backbone = backbones.of(recipe, device)
    session, tuning = open_session(recipe, device, backbone), tuning_of(recipe, device, backbone)
    with threads_for(recipe):
        prompt = items_of(recipe)[0].prompt
        roofline = measure_roofline(session, tuning, prompt)
        products = sum(each.seconds for each in roofline.operations if each.own and each.what == PRODUCT)
        parts = measure_parts(session, tuning, prompt, products)
        whole = measure_whole(session, recipe)
    return Details(recipe.output.name or "", parts, roofline, whole)
