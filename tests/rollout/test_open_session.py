"""What recipes that are compared in one process share."""

from __future__ import annotations

import pytest
import torch

from tetherflow.errors import KernelError
from tetherflow.recipe import load_recipe
from tetherflow.rollout.open_session import Backbones, first_device, open_session, threads_for

pytestmark = pytest.mark.usefixtures("toy")
TOY = ["backbone.use=toy"]
CPU = torch.device("cpu")


def test_recipes_of_one_backbone_share_its_weights() -> None:
    backbones = Backbones()
    fifo, tethercache = load_recipe("fifo", TOY), load_recipe("tethercache", TOY)
    shared = backbones.of(fifo, CPU)
    assert backbones.of(tethercache, CPU) is shared
    assert open_session(tethercache, CPU, shared).backbone is shared
    for change in ("backbone.weights_seed=1", "runtime.precision=bfloat16", "runtime.numerics=parity"):
        assert backbones.of(load_recipe("fifo", [*TOY, change]), CPU) is not shared


def test_attention_is_the_recipes() -> None:
    for name, chosen in (("auto", "plain"), ("math", "math"), ("flash", "flash")):
        recipe = load_recipe("fifo", [*TOY, f"runtime.attention={name}"])
        session = open_session(recipe, CPU)
        assert session.attention.name == session.new_cache(1).attention.name == chosen
    with pytest.raises(KernelError, match="'flash-attn-4' is not installed"):
        open_session(load_recipe("fifo", [*TOY, "runtime.attention=flash-attn-4"]), CPU)


def test_first_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert first_device(load_recipe("fifo", TOY)) == CPU
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert first_device(load_recipe("fifo", TOY)) == torch.device("cuda", 0)
    assert first_device(load_recipe("fifo", [*TOY, "runtime.device=cuda:2"])) == torch.device("cuda", 2)
    assert first_device(load_recipe("fifo", [*TOY, "runtime.device=cpu", "runtime.devices=3"])) == CPU


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with threads_for(load_recipe("fifo", [*TOY, f"runtime.threads={before + 1}"])):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
