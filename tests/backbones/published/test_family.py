"""The published checkpoints: each its own entry point, with the defaults that its authors publish."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from tetherflow.backbone import CacheUse
from tetherflow.cache.layout import Layout
from tetherflow.plugins import load_backbone
from tetherflow_backbones.published import PublishedWan
from tetherflow_backbones.published.backbone import WAN
from tetherflow_backbones.published.pins import pins
from tetherflow_backbones.recognise import WAN_1_3B, WAN_14B

ANY_POLICY = ["self-forcing", "self-forcing-sid", "causvid", "causal-forcing", "krea-realtime"]
NAMES = [*ANY_POLICY, "longlive", "reward-forcing"]
FOUR = (1000, 750, 500, 250)


def checkpoint(name: str) -> type[PublishedWan]:
    cls = load_backbone(name)
    assert issubclass(cls, PublishedWan)
    return cls


@pytest.mark.parametrize("name", NAMES)
def test_names_agree_and_files_are_known(name: str) -> None:
    cls = checkpoint(name)
    assert cls.checkpoint == name
    files = {file.name for file in cls.published_files()}
    assert cls.transformer_file in files
    assert {f"{WAN}/Wan2.1_VAE.pth", f"{WAN}/google/umt5-xxl/tokenizer.json"} < files
    assert (cls.lora_file in files) == (cls.lora_file is not None)
    assert len(files) == 4 + (cls.lora_file is not None)


@pytest.mark.parametrize(
    ("name", "steps", "warp", "shift"),
    [(name, FOUR, True, 5.0) for name in NAMES if name != "causvid"]
    + [("causvid", (1000, 757, 522), False, 8.0)],
)
def test_samplers(name: str, steps: tuple[int, ...], warp: bool, shift: float) -> None:
    options = checkpoint(name).Options()
    assert (options.steps, options.warp, options.shift) == (steps, warp, shift)
    assert (options.context_timestep, options.chunk_frames, options.latent_size) == (0.0, 3, (60, 104))


@pytest.mark.parametrize("name", NAMES)
def test_architectures(name: str) -> None:
    wanted = WAN_14B if name == "krea-realtime" else WAN_1_3B
    assert checkpoint(name).Options().architecture.architecture() == wanted


def test_pins_are_whole() -> None:
    """A file is pinned to a commit and a hash, or says that it is not; it is never half a pin."""
    for file in pins().values():
        assert file.revision is None or len(file.revision) == 40
        assert file.sha256 is None or len(file.sha256) == 64
        assert file.sha256 is None or (file.size is not None and file.revision is not None)
        assert file.size is None or file.size > 0
    assert len(pins()) == 11


def use(**changes: Any) -> CacheUse:
    plain = CacheUse(("sliding-window",), Layout(sink=0, memory=0, recent=21), "absolute", 3)
    return attrs.evolve(plain, **changes)


TETHERCACHE = use(
    policies=("recall-window", "relevance", "temporal-diversity", "top-m", "tame"),
    layout=Layout(sink=3, memory=14, recent=4),
    positions="block-relative",
)
SINK = use(policies=("sink-window",), layout=Layout(sink=3, memory=0, recent=9))


@pytest.mark.parametrize("name", ANY_POLICY)
def test_checkpoints_that_any_policy_may_use(name: str) -> None:
    for fine in (use(), TETHERCACHE, SINK):
        assert checkpoint(name).advice(fine) == []


@pytest.mark.parametrize(
    ("name", "used", "text"),
    [
        (
            "longlive",
            TETHERCACHE,
            "longlive was trained with the policy longlive or sink-window, and meets recall-window \\+ rel",
        ),
        ("longlive", attrs.evolve(SINK, positions="block-relative"), "was trained with absolute positions"),
        (
            "longlive",
            attrs.evolve(SINK, layout=Layout(3, 0, 18)),
            "3 sink frames and a bank of 0 in a window of 12; .* 3 and 0 in 21",
        ),
        (
            "longlive",
            attrs.evolve(SINK, chunk_frames=1),
            "trained to denoise 3 latent frames together; .* has 1",
        ),
        ("reward-forcing", TETHERCACHE, "trained with the policy sink-window \\+ ema-sink"),
        (
            "reward-forcing",
            use(policies=("sink-window", "ema-sink"), layout=Layout(0, 0, 7, bank=2)),
            "0 sink frames and a bank of 3 in a window of 9; .* 0 and 2 in 9",
        ),
        ("self-forcing", use(layout=Layout(0, 0, 24)), "attend to 21 latent frames at most; .* budget is 24"),
    ],
)
def test_uses_that_a_checkpoint_was_not_trained_for(name: str, used: CacheUse, text: str) -> None:
    (sentence, *_) = checkpoint(name).advice(used)
    with pytest.raises(ValueError, match=text):
        raise ValueError(sentence)


def test_a_checkpoint_used_as_trained_is_fine() -> None:
    assert checkpoint("longlive").advice(SINK) == []
    assert checkpoint("longlive").advice(attrs.evolve(SINK, policies=("longlive",))) == []
