"""Where the time goes: the parts are all there, and the floor is of the operations that a chunk has."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

from tetherflow.bench import Details, Roofline, compare, measure_details
from tetherflow.cache import CacheEngine
from tetherflow.recipe import load_recipe
from tetherflow.rollout.open_session import Backbones

pytestmark = pytest.mark.usefixtures("toy")
CPU = torch.device("cpu")
TOY = ["backbone.use=toy", "runtime.threads=1"]


@pytest.fixture(scope="module")
def details() -> Details:
    """Those of TetherCache on the synthetic backbone, small."""
    sizes = {"dim": 48, "ffn_dim": 64, "heads": 2, "layers": 2, "text_len": 8, "latent_size": "[4, 6]"}
    changes = [f"backbone.{key}={value}" for key, value in (sizes | {"vae_width": 4}).items()]
    recipe = load_recipe("tethercache", ["backbone.use=synthetic", "runtime.threads=1", *changes])
    return measure_details(recipe, Backbones())


def test_parts_are_all_named_and_positive(details: Details) -> None:
    assert list(details.parts) == [
        "attention", "prompt attention", "products", "glue", "policy", "cache", "rotation"
    ]  # fmt: skip
    timed = {part: seconds for part, seconds in details.parts.items() if part != "glue"}
    assert min(timed.values()) > 0


def test_floor_is_of_the_chunks_own_operations(details: Details) -> None:
    """5 passes of 2 layers, 18 tokens of 3 frames, 21 frames held, 8 tokens of text."""
    found = {(floor.what, floor.shape): floor.calls for floor in details.roofline.floors}
    assert found == {
        ("attention", (18, 126, 48)): 10,
        ("prompt attention", (18, 8, 48)): 10,
        ("product", (18, 48, 144)): 10,
        ("product", (18, 48, 48)): 30,
        ("product", (18, 64, 48)): 10,
        ("product", (18, 48, 64)): 15,  # the feed-forward networks' first, and the head's
        ("product", (3, 256, 48)): 5,
        ("product", (3, 48, 48)): 5,
        ("product", (3, 48, 288)): 5,
    }
    flops = {floor.shape: floor.flops for floor in details.roofline.floors}
    assert flops[18, 126, 48] == 4 * 18 * 126 * 48
    assert flops[18, 64, 48] == 2 * 18 * 64 * 48


def test_floor_adds_up(details: Details) -> None:
    roofline: Roofline = details.roofline
    kinds = [(each.what, each.kernel, each.own) for each in roofline.operations]
    assert kinds == [
        ("attention", "plain", True),
        ("prompt attention", "plain", True),
        ("product", "precision", True),
    ]
    assert roofline.seconds == pytest.approx(sum(floor.calls * floor.seconds for floor in roofline.floors))
    assert all(each.teraflops > 0 for each in roofline.operations)


def test_floor_names_the_kernel_that_the_recipe_asks_for() -> None:
    recipe = load_recipe("fifo", [*TOY, "runtime.attention=math"])
    operations = measure_details(recipe, Backbones()).roofline.operations
    assert {each.kernel for each in operations if each.what.endswith("attention") and each.own} == {"math"}


def test_video_is_timed_to_the_file(details: Details) -> None:
    whole = details.whole
    assert whole.frames_per_second > 0
    assert min(whole.first_frame_seconds, whole.decode_seconds, whole.copy_seconds, whole.encode_seconds) > 0
    assert (whole.transformer_bytes, whole.peak_bytes) == (None, None)  # of a GPU only


def test_8_bit_products_are_the_floor_of_a_recipe_that_asks_for_them() -> None:
    recipe = load_recipe("fifo", [*TOY, "runtime.matmul=fp8"])
    operations = measure_details(recipe, Backbones()).roofline.operations
    kinds = [(each.what, each.kernel, each.own) for each in operations]
    assert ("product", "fp8", True) in kinds
    assert ("product", "precision", False) in kinds
    shapes = [floor.shape for each in operations if each.kernel == "fp8" for floor in each.floors]
    assert len(shapes) > len(set(shapes))  # of one shape queries are in 8 bits, what attention gives is not


def test_backbone_computes_as_before_when_it_has_been_measured() -> None:
    backbones, recipe = Backbones(), load_recipe("fifo", TOY)
    backbone = backbones.of(recipe, CPU)
    network = backbone.transformer
    before = [block.attention for block in network.blocks]  # type: ignore[attr-defined]
    measure_details(recipe, backbones)
    assert [block.attention for block in network.blocks] == before  # type: ignore[attr-defined]
    assert not any(module._forward_hooks for module in network.modules())  # type: ignore[attr-defined]


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only what nothing refers to any more is freed, at once."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_memory_of_what_was_measured_before_does_not_count() -> None:
    """No cache outlives its measurement: nor a lane's, nor the watched one, nor the session's."""

    def caches() -> int:
        return sum(type(each) is CacheEngine for each in gc.get_objects())

    before, backbones = caches(), Backbones()
    recipes = [load_recipe(name, TOY) for name in ("fifo", "tethercache")]
    compare(recipes, 28, backbones=backbones)
    assert caches() == before
    for recipe in recipes:
        measure_details(recipe, backbones)
        assert caches() == before
