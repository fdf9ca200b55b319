"""The published TetherCache and Self-Forcing code at random weights, for `tetherflow bench --against`.

Needs a clone of https://github.com/my4f175/TetherCache on PYTHONPATH, see docs/benchmarks.md; nothing of it
is here. Model, attention, cache updates and policy are the clone's own. Its pipeline generates whole videos
only, so the loop over chunks stands here, with the same calls: 4 denoising passes and a context pass at time
0, as `configs/self_forcing_dmd.yaml` sets them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib import import_module
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tetherflow.bench import Workload
from tetherflow.errors import EvaluationError

DTYPE: Final = torch.bfloat16
"""The code's attention knows no other."""
SINK: Final = 3
"""`inference_long.py --sink_size`; its other defaults are TetherCacheConfig's."""
PROMPT: Final = (512, 4096)
SHIFT: Final = 5.0
CUDNN_FIRST: Final = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
FLASH_FIRST: Final = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def tethercache(work: Workload) -> Iterator[None]:
    """`inference_long.py --cache_backend tethercache`; flash-attn 2 or 3 if there, else PyTorch's choice."""
    return _generate(_load(work, recall=True), work)


def self_forcing(work: Workload) -> Iterator[None]:
    """`inference_long.py --cache_backend baseline`: Self-Forcing's rolling cache, its first frames kept."""
    return _generate(_load(work, recall=False), work)


def tethercache_cudnn(work: Workload) -> Iterator[None]:
    """As `tethercache`, PyTorch made to prefer cuDNN's attention."""
    return _prefer(CUDNN_FIRST, tethercache(work), work.chunks)


def self_forcing_cudnn(work: Workload) -> Iterator[None]:
    """As `self_forcing`, PyTorch made to prefer cuDNN's attention."""
    return _prefer(CUDNN_FIRST, self_forcing(work), work.chunks)


def tethercache_flash(work: Workload) -> Iterator[None]:
    """As `tethercache`, PyTorch made to take the flash-attn 2 that it carries."""
    return _prefer(FLASH_FIRST, tethercache(work), work.chunks)


def self_forcing_flash(work: Workload) -> Iterator[None]:
    """As `self_forcing`, PyTorch made to take the flash-attn 2 that it carries."""
    return _prefer(FLASH_FIRST, self_forcing(work), work.chunks)


def _prefer(kernels: list[SDPBackend], stream: Iterator[None], chunks: int) -> Iterator[None]:
    for _ in range(chunks):
        with sdpa_kernel(kernels, set_priority=True):  # never while another implementation has its turn
            next(stream)
        yield


def _load(work: Workload, *, recall: bool) -> SimpleNamespace:
    """What the clone's `install_tethercache` asks of a pipeline, with a generator at random weights."""
    _mend_attention()
    wrapper = _their("utils.wan_wrapper")
    policy = _their("tethercache")
    with patch.object(wrapper.CausalWanModel, "from_pretrained", lambda path, **sizes: _model(work, **sizes)):
        generator = wrapper.WanDiffusionWrapper(is_causal=True, timestep_shift=SHIFT)
    generator.model.num_frame_per_block = work.chunk_frames
    generator.to(device=work.device, dtype=DTYPE)
    pipeline = SimpleNamespace(
        generator=generator, args=SimpleNamespace(context_noise=0), frame_seq_length=work.tokens
    )
    policy.force_local_attn(pipeline, work.budget, SINK)
    if recall:
        config = policy.TetherCacheConfig(budget_size=work.budget, sink_size=SINK)
        policy.install_tethercache(pipeline, config)
        policy.reset_tethercache_state(pipeline)
    return pipeline


def _model(work: Workload, **sizes: int) -> Any:
    """CausalWanModel in Wan2.1-T2V-1.3B's proportions."""
    channels, rows, columns = work.latent_shape
    patch_edge = math.isqrt(rows * columns // work.tokens)
    dim = work.heads * work.head_dim
    with work.device:  # where drawing a billion weights takes no time
        return _their("wan.modules.causal_model").CausalWanModel(
            patch_size=(1, patch_edge, patch_edge),
            in_dim=channels,
            out_dim=channels,
            dim=dim,
            ffn_dim=dim * 35 // 6,  # 8960 at 1536
            num_heads=work.heads,
            num_layers=work.layers,
            **sizes,
        )


def _their(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise EvaluationError(
            f"published TetherCache: {error}; put a clone of it on PYTHONPATH and install its requirements, "
            "see docs/benchmarks.md"
        ) from error


def _mend_attention() -> None:
    """Let attention to the prompt go where all other attention goes if flash-attn 2 and 3 are missing.

    It calls flash-attn outright, and would stop without it. And flash-attn 4 answers to flash-attn 2's name
    without having its function.
    """
    attention, model = _their("wan.modules.attention"), _their("wan.modules.model")
    flash = getattr(attention, "flash_attn", None)
    attention.FLASH_ATTN_2_AVAILABLE = hasattr(flash, "flash_attn_varlen_func")
    if not (attention.FLASH_ATTN_2_AVAILABLE or attention.FLASH_ATTN_3_AVAILABLE):
        model.flash_attention = attention.attention


def _generate(pipeline: SimpleNamespace, work: Workload) -> Iterator[None]:
    generator, scheduler = pipeline.generator, pipeline.generator.get_scheduler()
    times = torch.cat([scheduler.timesteps.cpu(), torch.zeros(1)])
    steps = work.passes - 1
    schedule = [times[1000 * step // steps] for step in range(steps)]  # of 1000, 750, 500, 250; warped
    prompt = {"prompt_embeds": torch.randn(1, *PROMPT, device=work.device, dtype=DTYPE)}
    cache = [_layer_cache(work, work.budget * work.tokens) for _ in range(work.layers)]
    for layer in cache:
        for index in ("global_end_index", "local_end_index"):
            layer[index] = torch.zeros(1, device=work.device, dtype=torch.long)
    prompt_cache = [{**_layer_cache(work, PROMPT[0]), "is_init": False} for _ in range(work.layers)]

    @torch.no_grad()
    def denoise(latents: torch.Tensor, time: torch.Tensor, chunk: int) -> torch.Tensor:
        clean: torch.Tensor = generator(
            noisy_image_or_video=latents,
            conditional_dict=prompt,
            timestep=torch.ones(latents.shape[:2], device=work.device, dtype=torch.int64) * time,
            kv_cache=cache,
            crossattn_cache=prompt_cache,
            current_start=chunk * work.chunk_frames * work.tokens,
        )[1]
        return clean

    for chunk in range(work.chunks):
        noise = torch.randn(1, work.chunk_frames, *work.latent_shape, device=work.device, dtype=DTYPE)
        clean = denoise(noise, schedule[0], chunk)
        for time in schedule[1:]:
            frames = clean.flatten(0, 1)
            noisy = scheduler.add_noise(
                frames,
                torch.randn_like(frames),
                time * torch.ones(len(frames), device=work.device, dtype=torch.long),
            )
            clean = denoise(noisy.unflatten(0, clean.shape[:2]), time, chunk)
        denoise(clean, torch.tensor(0), chunk)
        yield


def _layer_cache(work: Workload, tokens: int) -> dict[str, Any]:
    shape = (1, tokens, work.heads, work.head_dim)
    return {name: torch.zeros(shape, device=work.device, dtype=DTYPE) for name in ("k", "v")}
