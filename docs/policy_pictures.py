"""Draws the policies' pictures anew: `python docs/policy_pictures.py [RECIPE …]`, or `make pictures`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent / "images" / "policies"
SHAPES = "a red circle and a blue square bounce on a green field"
OTHERS = "a white circle and a yellow square bounce on a blue field"


def _switching(first: str, second: str) -> str:
    """Another prompt at 9 s, and the first again at 18 s, with what the cache does at each."""
    return (
        f"rollout.prompts=[[{{at: 0s, prompt: {SHAPES}}}, {{at: 9s, prompt: {OTHERS}, switch: {first}}}, "
        f"{{at: 18s, prompt: {SHAPES}, switch: {second}}}]]"
    )


# What `tetherflow picture` is told besides the recipe. Of a short window, fewer chunks show more.
PICTURES: dict[str, Sequence[str]] = {
    "fifo": ("--chunks", "40"),
    "sink-window": ("--chunks", "40"),
    "tethercache": ("--chunks", "60"),
    "grab-no-diversity": ("--chunks", "60"),
    "tethercache-no-tame": ("--chunks", "60"),
    "tethercache-ramp": ("--chunks", "60"),
    "tethercache-adaptive": ("--chunks", "60"),
    "infinity-rope": ("--chunks", "32", "--set", _switching("flush", "cut")),
    "deep-forcing": ("--chunks", "28"),
    "deep-sink": ("--chunks", "28"),
    "memrope": ("--chunks", "28"),
    "ema-sink": ("--chunks", "28"),
    "rolling-sink": ("--chunks", "48"),
    "rolling-forcing": ("--chunks", "40"),
    "fademem": ("--chunks", "60"),
    "forcing-kv": ("--chunks", "20"),
    "longlive": ("--chunks", "32", "--set", _switching("recache", "flush")),
    "h2o": ("--chunks", "60"),
    "key-norm": ("--chunks", "60"),
    "grab-ema-sink": ("--chunks", "60"),
    "fademem-tame": ("--chunks", "60"),
    "h2o-tame": ("--chunks", "60"),
}


def words_of(recipe: str) -> list[str]:
    """The command that draws a recipe's picture, but for where."""
    return ["picture", recipe, *PICTURES[recipe]]


def command_of(recipe: str) -> str:
    """The same, as one types it."""
    return shlex.join(["tetherflow", *words_of(recipe)])


def main(*recipes: str) -> None:
    """Draw the pictures of some recipes, or of all."""
    from tetherflow.cli import app

    for recipe in recipes or PICTURES:
        app([*words_of(recipe), "--output", str(FOLDER / f"{recipe}.png")], standalone_mode=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
