"""The published model at full size, from files in the published formats with random weights: memory and time.

Run with `pytest -m gpu tests/gpu/test_published_size.py -s`; what it measures is printed. It writes 18 GB to
pytest's temporary folder, which needs `transformers`, `diffusers`, `tokenizers` and `ftfy`.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from tests.backbones.published.formats import save_pt, save_tokenizer, umt5_original, vae_original
from tetherflow.recipe import load_recipe
from tetherflow.rollout.open_session import open_session
from tetherflow_backbones.causal_wan import Architecture, CausalWanTransformer
from tetherflow_backbones.published.backbone import TEXT_ENCODER, TOKENIZER, VAE
from tetherflow_backbones.self_forcing import SelfForcing
from tetherflow_backbones.synthetic import _filled

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CUDA = torch.device("cuda")
GIB = 2**30
UMT5_XXL = {
    "vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "relative_attention_num_buckets": 32,
}  # fmt: skip


def drawn(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A model from the meta device with weights at random, in the host's memory."""
    return _filled(model.to(dtype), CUDA, torch.Generator(CUDA).manual_seed(0)).cpu()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What `tetherflow fetch self-forcing` leaves, in its types and sizes."""
    path = tmp_path_factory.mktemp("weights")
    with torch.device("meta"):
        transformer = CausalWanTransformer(Architecture())
        text, vae = UMT5EncoderModel(UMT5Config(**UMT5_XXL)), AutoencoderKLWan()
    transformer_file = path / SelfForcing.transformer_file
    save_pt(transformer_file, drawn(transformer, torch.float32).state_dict(), "generator_ema")
    save_pt(path / TEXT_ENCODER, umt5_original(drawn(text, torch.bfloat16)), prefix="")
    save_pt(path / VAE, vae_original(drawn(vae, torch.float32)), prefix="")
    save_tokenizer(path / TOKENIZER)
    torch.cuda.empty_cache()
    yield path
    shutil.rmtree(path)


class Memory:
    """The most memory that the GPU gave and the process wrote to, while something went on."""

    gpu = host = 0.0

    @contextmanager
    def watched(self, what: str) -> Iterator[None]:
        done = threading.Event()
        start = _written()
        seen = [start]

        def watch() -> None:
            while not done.wait(0.02):
                seen.append(_written())

        torch.cuda.reset_peak_memory_stats()
        thread = threading.Thread(target=watch)
        thread.start()
        started = time.perf_counter()
        try:
            yield
            torch.cuda.synchronize()
        finally:
            seconds = time.perf_counter() - started
            done.set()
            thread.join()
        self.gpu, self.host = torch.cuda.max_memory_allocated() / GIB, (max(seen) - start) / GIB
        print(
            f"{what:44} {seconds:6.1f} s, GPU {self.gpu:5.2f} GiB, host {self.host:5.2f} GiB more", flush=True
        )


def _written() -> int:
    """Bytes of the process that are no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) * 1024


@pytest.mark.parametrize(("memory", "most"), [("low", 23.0), ("normal", 40.0)])
def test_from_files_to_frames(folder: Path, memory: str, most: float) -> None:
    """With low memory on a card of 24 GB, and never two copies of a file in the host's memory."""
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}, runtime.memory={memory}")
    changes = [f"backbone.folder='{folder}'", f"runtime.memory={memory}"]
    recipe = load_recipe("self-forcing-tethercache", changes)
    used = Memory()
    with used.watched("loading the transformer"):
        session = open_session(recipe, CUDA)
    assert used.gpu < 4
    assert used.host < 4
    with used.watched("the prompt, with loading the text encoder"):
        session.backbone.expect_prompts(["a red circle bounces on a green field"])
    assert used.gpu < 16
    assert used.host < 4
    stream = session.stream(["a red circle bounces on a green field"], latent_frames=30, seeds=[0])
    with used.watched("the first chunk, with loading the autoencoder"):
        first = next(stream)
    assert first.decoded is not None
    assert first.decoded.on_host().shape == (1, 9, 3, 480, 832)
    assert used.gpu < most
    with used.watched("nine more chunks"):
        for chunk in stream:
            assert chunk.decoded is not None
            frames = chunk.decoded.on_host()
    assert frames.shape == (1, 12, 3, 480, 832)
    assert frames.float().std() > 1
    assert used.gpu < most
