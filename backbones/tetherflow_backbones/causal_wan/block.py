"""A block of the causal Wan transformer: norms, attentions, feed-forward network, and how they are joined."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Protocol

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional

from tetherflow.cache import Rotary
from tetherflow.cache.attention import PLAIN, Attention
from tetherflow.fp8 import Fp8Linear
from tetherflow.own_kernels import kernels
from tetherflow_backbones.causal_wan.add_norm import KERNELS, Tokens, add_norm
from tetherflow_backbones.causal_wan.architecture import Architecture
from tetherflow_backbones.causal_wan.feed_forward import FeedForward, in_8_bits, product
from tetherflow_backbones.causal_wan.modulation import (
    AllModulations,
    Modulations,
    gated,
    longest_norm,
    modulate,
)
from tetherflow_backbones.causal_wan.prompt import Prompt, attend_prompt, attend_whole
from tetherflow_backbones.causal_wan.rotary import WanRotary


class AttentionCache(Protocol):
    """What self-attention reads from: the cache engine when generating, a mask when training."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend from a pass's tokens; all tensors are `[B, F*T, heads, head_dim]`, unrotated."""
        ...


class RMSNorm(nn.Module):
    """Root-mean-square norm over the full width, computed in float32 (arXiv 1910.07467)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of `x`."""
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).type_as(x) * self.weight


class LayerNorm(nn.LayerNorm):
    """Layer norm computed in float32, whatever the input's type."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of `x`."""
        weight = None if self.weight is None else self.weight.float()
        bias = None if self.bias is None else self.bias.float()
        normal = functional.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps)
        return normal.type_as(x)


class Projections(nn.Module):
    """Projections and query/key norms that self- and cross-attention share.

    Attributes:
        fused: whether to use the kernels in Triton, which have no gradient.
    """

    q: nn.Module
    o: nn.Module

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.fused = False
        self.heads = arch.num_heads
        self.q = nn.Linear(arch.dim, arch.dim)
        self.k = nn.Linear(arch.dim, arch.dim)
        self.v = nn.Linear(arch.dim, arch.dim)
        self.o = nn.Linear(arch.dim, arch.dim)
        self.norm_q = RMSNorm(arch.dim, arch.eps)
        self.norm_k = RMSNorm(arch.dim, arch.eps)

    def split(self, x: Tensor) -> Tensor:
        """`[B, L, dim]` to `[B, L, heads, head_dim]`."""
        return x.view(*x.shape[:-1], self.heads, -1)


class SelfAttention(Projections):
    """Self-attention of a pass's tokens on the cache's view."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__(arch)
        self.qkv: nn.Module | None = None

    def fuse(self) -> None:
        """Replace the three projections by one product over their joined weights, and free the originals."""
        if self.qkv is not None:
            return
        parts = [part for part in (self.q, self.k, self.v) if isinstance(part, nn.Linear)]
        fused = nn.Linear(self.k.in_features, 3 * self.k.out_features, device="meta")
        fused.weight = nn.Parameter(torch.cat([part.weight.detach() for part in parts]), requires_grad=False)
        fused.bias = nn.Parameter(torch.cat([part.bias.detach() for part in parts]), requires_grad=False)
        self.qkv = fused
        del self.q, self.k, self.v

    def project(self, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Unrotated queries, keys and values, each `[B, L, heads, head_dim]`, of tokens `[B, L, dim]`."""
        if self.qkv is not None:
            return self.unpacked(self.packed(tokens))
        query, key, value = (self.split(linear(tokens.values)) for linear in (self.q, self.k, self.v))
        return self._normed(self.norm_q, query), self._normed(self.norm_k, key), value

    def packed(self, tokens: Tokens) -> Tensor:
        """Queries, keys and values, the first two yet to be normalised, `[B, L, 3, heads, head_dim]`."""
        if self.qkv is None:
            parts = [self.split(linear(tokens.values)) for linear in (self.q, self.k, self.v)]
            return torch.stack(parts, dim=2)
        packed: Tensor = product(self.qkv, tokens).unflatten(-1, (3, self.heads, -1))
        return packed

    def unpacked(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unrotated queries, keys and values, each `[B, L, heads, head_dim]`, of what `packed` gives."""
        return self.query_of(packed), *self.key_value_of(packed)

    def query_of(self, packed: Tensor) -> Tensor:
        """The first of them (`cache.Unpacks`)."""
        return self._normed(self.norm_q, packed[:, :, 0])

    def key_value_of(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        """The others."""
        return self._normed(self.norm_k, packed[:, :, 1]), packed[:, :, 2]

    def write(
        self,
        packed: Tensor,
        rotary: Rotary,
        phases: Tensor,
        keys: Tensor,
        values: Tensor,
        plain: Tensor | None,
        *,
        coarse: bool,
    ) -> Tensor | None:
        """Write rotated keys, and values, to their slots, and rotate queries (`cache.Writes`)."""
        if not self.fused or not isinstance(rotary, WanRotary) or phases.dtype != torch.float32:
            return None
        queries = packed.new_empty(keys.shape)
        weights, by_token = (self.norm_q.weight, self.norm_k.weight), phases.flatten(-5, -3)
        kernels(KERNELS).write_packed(
            packed.contiguous(),
            *weights,
            self.norm_q.eps,
            by_token,
            queries,
            keys,
            values,
            plain,
            coarse=coarse,
        )
        return queries

    def _normed(self, norm: nn.Module, x: Tensor) -> Tensor:
        """Queries or keys `[..., heads, head_dim]`, normalised over all heads together."""
        normal: Tensor = norm(x.flatten(-2)).unflatten(-1, x.shape[-2:])
        return normal


class CrossAttention(Projections):
    """Cross-attention on the prompt, whose keys and values are computed once a prompt."""

    def prompt(self, text: Tensor, alike: int = 1) -> Prompt:
        """Keys and values of embedded text `[B, N, dim]`, the last of which stands for `alike` tokens."""
        value = self.v(text)
        limit = value.abs().amax().float() if in_8_bits(self.o) else None
        return Prompt(self.split(self.norm_k(self.k(text))), self.split(value), alike, limit)

    def project(self, tokens: Tokens) -> Tensor:
        """Queries `[B, L, heads, head_dim]` of tokens `[B, L, dim]`."""
        return self.split(self.norm_q(product(self.q, tokens)))

    def attend(self, query: Tensor, prompt: Prompt, attention: Attention) -> Tokens:
        """Attend from queries `[B, L, heads, head_dim]`; gives tokens `[B, L, dim]`."""
        # Where there are all tokens of a prompt, other kernels are faster, but none of them rounds.
        if self.fused and (prompt.alike > 1 or prompt.limit is not None):
            tokens: Tokens = attention.watch(attend_prompt)(query, *prompt)
            return tokens
        return attend_whole(query, prompt, attention)


class Block(nn.Module):
    """One transformer block: self-attention, cross-attention and feed-forward, modulated by time a frame.

    Attributes:
        longest: Euclidean norm that no token exceeds of which cross-attention makes queries, float32 scalar;
            None unless products are in 8 bits.
        attention: computes cross-attention, where no kernel of its own does.
    """

    longest: Tensor | None

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.norm1 = LayerNorm(arch.dim, arch.eps, elementwise_affine=False)
        self.self_attn = SelfAttention(arch)
        self.norm3 = LayerNorm(arch.dim, arch.eps)
        self.cross_attn = CrossAttention(arch)
        self.norm2 = LayerNorm(arch.dim, arch.eps, elementwise_affine=False)
        self.ffn = FeedForward(arch.dim, arch.ffn_dim)
        self.modulation = nn.Parameter(torch.randn(1, 6, arch.dim) / arch.dim**0.5)
        self.register_buffer("longest", None)
        self.attention: Attention = PLAIN

    def forward(
        self,
        x: Tensor,
        time: Modulations,
        layer: int,
        prompt: Prompt,
        cache: AttentionCache,
    ) -> Tensor:
        """Transform tokens `x` `[B, F*T, dim]`."""
        attended = cache.attend(layer, *self.project(x, time))
        x, query = self.between(x, attended, time)
        return self.after(x, self.attend_prompt(query, prompt), time)

    def attend_prompt(self, query: Tensor, prompt: Prompt) -> Tokens:
        """What cross-attention gives for queries `[B, F*T, heads, head_dim]`."""
        return self.cross_attn.attend(query, prompt, self.attention)

    def before(self, x: Tensor, time: Modulations) -> Tensor:
        """What self-attention takes, in one tensor (`SelfAttention.packed`)."""
        return self.self_attn.packed(self._entering(x, time))

    def project(self, x: Tensor, time: Modulations) -> tuple[Tensor, Tensor, Tensor]:
        """The same in three (`SelfAttention.project`)."""
        return self.self_attn.project(self._entering(x, time))

    def between(self, x: Tensor, attended: Tensor, time: Modulations) -> tuple[Tensor, Tensor]:
        """Tokens after self-attention, and what cross-attention takes of them."""
        branch, gate = self.self_attn.o(attended.flatten(2)), time.attention.gate
        limit = _limit(self.cross_attn.q, self.longest)
        x, tokens = add_norm(x, branch, gate, self.norm3, None, limit, fused=self.self_attn.fused)
        return x, self.cross_attn.project(tokens)

    def after(self, x: Tensor, attended: Tokens, time: Modulations) -> Tensor:
        """Tokens after cross-attention and the feed-forward network."""
        x, branch = self._feed(x, attended, time)
        return x + gated(branch, time.feed_forward.gate)

    def leave(
        self, x: Tensor, attended: Tokens, time: Modulations, norm: nn.LayerNorm, by: tuple[Tensor, Tensor]
    ) -> Tensor:
        """The same, normalised, scaled and shifted, as what follows the last block takes them."""
        x, branch = self._feed(x, attended, time)
        gate = time.feed_forward.gate
        _, tokens = add_norm(x, branch, gate, norm, by, None, fused=self.self_attn.fused)
        return tokens.values

    def join(
        self, after: Block, x: Tensor, attended: Tokens, time: Modulations, after_time: Modulations
    ) -> tuple[Tensor, Tensor]:
        """Tokens after this block, and what self-attention of the block `after` it takes of them."""
        x, branch = self._feed(x, attended, time)
        gate, by = time.feed_forward.gate, after_time.attention
        limit = _limit(after.self_attn.qkv, by.longest)
        x, tokens = add_norm(x, branch, gate, after.norm1, by[:2], limit, fused=self.self_attn.fused)
        return x, after.self_attn.packed(tokens)

    def quantise(self) -> None:
        """Keep weights in 8 bits, and free the originals.

        Those of fused projections, of cross-attention's queries and of the feed-forward network; of what
        cross-attention gives, where its own kernel rounds it. What self-attention gives would have to be
        rounded by itself, which takes what its product gains.
        """
        if self.cross_attn.fused and isinstance(self.cross_attn.o, nn.Linear):
            self.cross_attn.o = Fp8Linear(self.cross_attn.o)
        if isinstance(self.cross_attn.q, nn.Linear):
            self.longest = longest_norm(self.norm3.weight.detach(), self.norm3.bias.detach())
            self.cross_attn.q = Fp8Linear(self.cross_attn.q)
        if isinstance(self.self_attn.qkv, nn.Linear):
            self.self_attn.qkv = Fp8Linear(self.self_attn.qkv)
        self.ffn.quantise()

    def _entering(self, x: Tensor, time: Modulations) -> Tokens:
        """Tokens that self-attention projects."""
        shift, scale, _, longest = time.attention
        return Tokens(modulate(self.norm1(x), shift, scale), _limit(self.self_attn.qkv, longest))

    def _feed(self, x: Tensor, attended: Tokens, time: Modulations) -> tuple[Tensor, Tensor]:
        """Tokens after cross-attention, and what the feed-forward network makes of them."""
        branch, by = product(self.cross_attn.o, attended), time.feed_forward
        limit = _limit(self.ffn[0], by.longest)
        x, tokens = add_norm(x, branch, None, self.norm2, by[:2], limit, fused=self.self_attn.fused)
        return x, self.ffn(tokens)


def _limit(layer: nn.Module | None, longest: Tensor | None) -> Tensor | None:
    """What a layer must know of how long its tokens are: nothing, unless it is in 8 bits."""
    return longest if in_8_bits(layer) else None


Entered = tuple[Tensor, Tensor, Tensor, AllModulations]
"""Tokens, what the first self-attention takes of them, embedded times, and what they do to the blocks."""


@attrs.frozen
class Glue:
    """What lies between attentions, as compiled functions.

    Attributes:
        enter: what precedes the first attention.
        between: `Block.between`.
        join: `Block.join`.
        leave: what follows the last attention.
        frames: latent frames of the chunks that they serve.
    """

    enter: Callable[..., Entered]
    between: Callable[[Block, Tensor, Tensor, Modulations], tuple[Tensor, Tensor]]
    join: Callable[[Block, Block, Tensor, Tokens, Modulations, Modulations], tuple[Tensor, Tensor]]
    leave: Callable[..., Tensor]
    frames: int

    @classmethod
    @cache  # so that tuning another transformer, or one again, compiles nothing again
    def compiled(
        cls,
        enter: Callable[..., Entered],
        leave: Callable[..., Tensor],
        frames: int,
        backend: str = "inductor",
    ) -> Glue:
        """Each function compiled, once for all blocks; no attention, cache or policy is in any graph.

        Args:
            enter: a transformer's.
            leave: likewise.
            frames: latent frames of the chunks to compile for; another number, as at a video's end, is not
                worth the time that compiling takes.
            backend: the compiler.
        """
        # Not `fullgraph`: one variant too many would be an error. Tests hold that nothing breaks a graph.
        compiled = partial(torch.compile, backend=backend, dynamic=False)
        return cls(compiled(enter), compiled(Block.between), compiled(Block.join), compiled(leave), frames)
