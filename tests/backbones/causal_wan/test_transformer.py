"""The transformer: shapes, token layout, batches, and the fused projections."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import Tensor

from tests.backbones.causal_wan.models import SMALL, Alone, transformer
from tetherflow_backbones.causal_wan import Architecture, CausalWanTransformer
from tetherflow_backbones.causal_wan.block import RMSNorm
from tetherflow_backbones.causal_wan.transformer import sinusoids


def noise(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def flow(
    model: CausalWanTransformer,
    latents: Tensor,
    context: Tensor,
    timesteps: Tensor | None = None,
    start: int = 0,
) -> Tensor:
    batch, frames, _, height, width = latents.shape
    cache = Alone(model.arch, model.arch.grid(height, width), frames, start)
    if timesteps is None:
        timesteps = torch.full((batch, frames), 750.0)
    return model(latents, timesteps, model.prepare_text(context), cache)


@pytest.mark.parametrize("size", [(2, 2), (4, 4), (2, 6), (6, 4)])
@pytest.mark.parametrize("frames", [1, 3])
def test_flow_has_the_shape_of_the_latents(size: tuple[int, int], frames: int) -> None:
    latents = noise((2, frames, 3, *size))
    assert flow(transformer(), latents, noise((2, 4, 12))).shape == latents.shape


@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2), (1, 1, 2), (1, 2, 1)])
def test_every_patch_size_works(patch: tuple[int, int, int]) -> None:
    latents = noise((1, 2, 3, 4, 6))
    model = transformer(attrs.evolve(SMALL, patch_size=patch))
    assert flow(model, latents, noise((1, 4, 12))).shape == latents.shape


@pytest.mark.parametrize("size", [(4, 6), (2, 8)])
def test_unpatchify_undoes_the_patch_embedding(size: tuple[int, int]) -> None:
    """With an embedding that only lays a patch out in order, latents come back as they were."""
    arch = attrs.evolve(SMALL, patch_size=(1, 2, 2), in_dim=3, out_dim=3)
    rows, columns = arch.grid(*size)
    latents = noise((2, 3, 3, *size))
    patches = latents.unflatten(-2, (rows, 2)).unflatten(-1, (columns, 2))  # [B, F, C, h, p, w, q]
    # A patch's numbers lie in the order row, column, channel (the published head's).
    tokens = patches.permute(0, 1, 3, 5, 4, 6, 2).flatten(4, 6).flatten(1, 3)
    assert torch.equal(transformer(arch).unpatchify(tokens, (rows, columns)), latents)


def test_tokens_follow_the_order_of_the_patch_embedding() -> None:
    """Token r·columns + c of a frame is the patch in row r and column c, so positions and output agree."""
    model = transformer()
    latents = torch.zeros(1, 1, 3, 4, 6)
    latents[..., 2:4, 4:6] = noise((3, 2, 2))
    tokens = model.patch_embedding(latents.transpose(1, 2)).flatten(2).transpose(1, 2)[0]
    changed = (tokens - tokens[0]).abs().sum(dim=-1) > 0
    assert changed.nonzero().flatten().tolist() == [1 * 3 + 2]
    marked = torch.zeros(1, 6, 12)
    marked[0, 5] = 1
    assert bool((model.unpatchify(marked, (2, 3))[..., 2:4, 4:6] == 1).all())
    assert int(model.unpatchify(marked, (2, 3)).sum()) == 12


def test_sample_does_not_depend_on_its_batch() -> None:
    model = transformer()
    latents, context = noise((3, 2, 3, 4, 4)), noise((3, 4, 12), 1)
    timesteps = torch.tensor([[1000.0, 1000], [500, 500], [0, 0]])
    together = flow(model, latents, context, timesteps)
    for row in range(3):
        one = slice(row, row + 1)
        alone = flow(model, latents[one], context[one], timesteps[one])
        torch.testing.assert_close(together[one], alone, atol=1e-5, rtol=1e-5)


def test_frames_of_one_pass_see_one_another() -> None:
    model = transformer()
    latents, context = noise((1, 3, 3, 4, 4)), noise((1, 4, 12), 1)
    other = latents.clone()
    other[:, 2] += 1
    assert (flow(model, latents, context) - flow(model, other, context))[:, 0].abs().max() > 1e-3


def test_each_frame_has_a_timestep_of_its_own() -> None:
    """Two frames at one level, computed with a level each, are the same; other levels are not."""
    model = transformer()
    latents, context = noise((1, 2, 3, 4, 4)), noise((1, 4, 12), 1)
    same = flow(model, latents, context, torch.tensor([[500.0, 500.0]]))
    mixed = flow(model, latents, context, torch.tensor([[500.0, 0.0]]))
    assert (same - mixed).abs().max() > 1e-3


def test_flow_depends_on_distances_in_time_alone() -> None:
    model = transformer()
    latents, context = noise((1, 3, 3, 4, 6)), noise((1, 4, 12), 1)
    torch.testing.assert_close(
        flow(model, latents, context), flow(model, latents, context, start=1500), atol=1e-4, rtol=1e-4
    )


def test_flow_depends_on_the_prompt() -> None:
    model = transformer()
    latents = noise((1, 2, 3, 4, 4))
    assert (
        flow(model, latents, noise((1, 4, 12), 1)) - flow(model, latents, noise((1, 4, 12), 2))
    ).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fused_projections_give_the_same(dtype: torch.dtype) -> None:
    model, fused = (transformer().to(dtype) for _ in range(2))
    fused.fuse()
    fused.fuse()  # a second time does nothing
    latents, context = noise((2, 3, 3, 4, 4)).to(dtype), noise((2, 4, 12), 1).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(
        flow(fused, latents, context), flow(model, latents, context), atol=tolerance, rtol=tolerance
    )


def test_fusing_frees_the_originals() -> None:
    model = transformer()
    before = sum(parameter.numel() for parameter in model.parameters())
    model.fuse()
    assert sum(parameter.numel() for parameter in model.parameters()) == before
    names = {name for name, _ in model.blocks[0].named_parameters()}
    assert "self_attn.qkv.weight" in names
    assert not any(name.startswith("self_attn.q.") for name in names)
    assert "cross_attn.q.weight" in names


def test_bfloat16_stays_near_float32() -> None:
    latents, context = noise((1, 3, 3, 4, 4)), noise((1, 4, 12), 1)
    wide = flow(transformer(), latents, context)
    narrow = flow(transformer().bfloat16(), latents.bfloat16(), context.bfloat16())
    assert narrow.dtype == torch.bfloat16
    assert (narrow.float() - wide).abs().mean() < 0.03 * wide.abs().mean()


def test_norms_are_computed_in_float32() -> None:
    """bfloat16 squares would lose the sum of many."""
    norm = RMSNorm(512, 1e-6).bfloat16()
    x = noise((4, 512)).bfloat16()
    wanted = x.float() * x.float().square().mean(-1, keepdim=True).rsqrt()
    torch.testing.assert_close(norm(x), wanted.bfloat16(), atol=0, rtol=1e-2)


def test_sinusoids_are_cosines_then_sines() -> None:
    found = sinusoids(torch.tensor([0.0, 3.0]), 4)
    assert found.dtype == torch.float64
    rate = torch.tensor([3.0, 0.03], dtype=torch.float64)
    torch.testing.assert_close(
        found, torch.stack([torch.tensor([1.0, 1, 0, 0]).double(), torch.cat([rate.cos(), rate.sin()])])
    )


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({"dim": 25}, "dim 25 does not split into 2 heads of even width"),
        ({"dim": 6}, "dim 6 does not split into 2 heads of even width"),
        ({"patch_size": (2, 2, 2)}, "a token must lie within one latent frame"),
    ],
)
def test_sizes_that_make_no_transformer_are_refused(sizes: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        attrs.evolve(SMALL, **sizes)


def test_frame_that_does_not_split_into_patches_is_refused() -> None:
    assert SMALL.grid(4, 6) == (2, 3)
    with pytest.raises(ValueError, match="a latent frame of 5x6 does not split into 2x2 patches"):
        SMALL.grid(5, 6)


def test_default_sizes_are_those_of_wan_1_3b() -> None:
    with torch.device("meta"):
        model = CausalWanTransformer(Architecture())
    count = sum(parameter.numel() for parameter in model.parameters())
    assert 1.40e9 < count < 1.43e9  # "1.3B" counts without embeddings
    names = model.state_dict().keys()
    assert {"blocks.29.self_attn.norm_q.weight", "head.modulation", "time_projection.1.weight"} <= names
