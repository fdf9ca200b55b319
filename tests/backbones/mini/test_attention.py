"""Teacher forcing without a mask attends as the mask would, and as separate passes do."""

from __future__ import annotations

import torch
from torch.nn import functional

from tetherflow_backbones.causal_wan import WanRotary
from tetherflow_backbones.mini.config import TINY
from tetherflow_backbones.mini.train.attention import CleanPass, NoisyPass, TeacherForcing, Turn
from tetherflow_backbones.mini.train.denoiser import Denoiser
from tetherflow_backbones.mini.train.preview import Window
from tetherflow_backbones.mini.train.teacher import chunk_tokens, teacher_forcing

CPU = torch.device("cpu")
FRAMES = 9


def _turn(frames: int = FRAMES) -> Turn:
    return Turn(TINY.transformer, TINY.latent[1:], frames, CPU)


def _sequence(halves: int) -> torch.Tensor:
    rows, columns = TINY.transformer.grid(*TINY.latent[1:])
    tokens = halves * FRAMES * rows * columns
    return torch.randn(2, tokens, TINY.transformer.num_heads, TINY.transformer.head_dim)


def test_the_real_rotation_equals_the_transformers() -> None:
    torch.manual_seed(0)
    x = _sequence(1)
    rotary = WanRotary(TINY.transformer.head_dim, TINY.transformer.grid(*TINY.latent[1:]))
    expected = rotary.rotate(x.unflatten(1, (FRAMES, -1)), torch.arange(FRAMES)).flatten(1, 2)
    assert torch.allclose(_turn()(x).transpose(1, 2), expected, atol=1e-6)


def test_it_equals_attention_under_the_block_causal_mask() -> None:
    torch.manual_seed(0)
    query, key, value = _sequence(2), _sequence(2), _sequence(2)
    chunk, half = chunk_tokens(TINY), query.shape[1] // 2
    at = torch.arange(2 * half)
    noisy, block = at >= half, at % half // chunk
    clean_seen = ~noisy[None] & torch.where(
        noisy[:, None], block[None] < block[:, None], block[None] <= block[:, None]
    )
    own = noisy[:, None] & noisy[None] & (block[:, None] == block[None])
    turn = _turn()

    def turned(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([turn(x[:, :half]), turn(x[:, half:])], dim=2)

    expected = functional.scaled_dot_product_attention(
        turned(query), turned(key), value.transpose(1, 2), attn_mask=clean_seen | own
    ).transpose(1, 2)
    assert torch.allclose(TeacherForcing(turn, chunk).attend(0, query, key, value), expected, atol=1e-5)


def _denoiser() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(TINY.transformer).eval()


@torch.no_grad()
def test_a_clean_pass_then_a_noisy_pass_equal_both_at_once() -> None:
    denoiser = _denoiser()
    frames = TINY.latent_frames
    clean, noisy = torch.randn(2, 1, frames, *TINY.latent).unbind()
    levels = torch.rand(1, frames // 3).repeat_interleave(3, dim=1)
    ids = torch.randint(2, 20, (1, 24))
    zeros = torch.zeros_like(levels)
    both = denoiser(
        torch.cat([clean, noisy], 1), torch.cat([zeros, levels], 1), ids, teacher_forcing(TINY, CPU)
    )
    seen = CleanPass(_turn(frames), chunk_tokens(TINY))
    denoiser(clean, zeros, ids, seen)
    apart = denoiser(noisy, levels, ids, NoisyPass(_turn(frames), chunk_tokens(TINY), seen.kept()))
    assert torch.allclose(both[:, frames:], apart, atol=1e-5)


@torch.no_grad()
def test_the_sampler_sees_what_training_showed() -> None:
    denoiser = _denoiser()
    frames, chunk = TINY.latent_frames, TINY.chunk_frames
    clean, noisy = torch.randn(2, 1, frames, *TINY.latent).unbind()
    ids = torch.randint(2, 20, (1, 24))
    zeros, levels = torch.zeros(1, frames), torch.full((1, frames), 0.7)
    both = denoiser(
        torch.cat([clean, noisy], 1), torch.cat([zeros, levels], 1), ids, teacher_forcing(TINY, CPU)
    )
    window = Window(_turn(frames), chunk_tokens(TINY), frames // chunk)
    flows = []
    for start in range(0, frames, chunk):
        own = slice(start, start + chunk)
        window.committing = False
        flows.append(denoiser(noisy[:, own], levels[:, own], ids, window))
        window.committing = True
        denoiser(clean[:, own], zeros[:, own], ids, window)
    assert torch.allclose(both[:, frames:], torch.cat(flows, dim=1), atol=1e-4)


@torch.no_grad()
def test_compiled_blocks_compute_the_same() -> None:
    plain, traced = _denoiser(), _denoiser()
    traced.compile_blocks(backend="eager")
    latents, ids = torch.randn(1, 2 * TINY.latent_frames, *TINY.latent), torch.randint(2, 20, (1, 24))
    levels = torch.rand(1, 2 * TINY.latent_frames)
    forcing = teacher_forcing(TINY, CPU)
    assert torch.allclose(
        traced(latents, levels, ids, forcing), plain(latents, levels, ids, forcing), atol=1e-5
    )
