"""The feed-forward network: fused and in 8 bits it computes the same, and stays what bench counts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tetherflow.fp8 import Fp8Linear, Fp8LinearGelu
from tetherflow_backbones.causal_wan.add_norm import Tokens
from tetherflow_backbones.causal_wan.feed_forward import FeedForward


def network() -> FeedForward:
    torch.manual_seed(0)
    return FeedForward(32, 64).requires_grad_(False)


def tokens() -> Tensor:
    return torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))


def test_fused_it_computes_the_same_from_the_same_parameters() -> None:
    plain, fused = network(), network()
    fused.fuse()
    fused.fuse()  # again changes nothing
    assert torch.equal(fused(Tokens(tokens())), plain(Tokens(tokens())))
    assert list(fused.state_dict()) == list(plain.state_dict())


def test_fused_it_still_has_two_linear_layers() -> None:
    """Whoever counts products by their modules finds both."""
    fused = network()
    fused.fuse()
    called: list[tuple[int, int]] = []
    for module in fused.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda m, *_: called.append((m.in_features, m.out_features)))
    fused(Tokens(tokens()))
    assert called == [(32, 64), (64, 32)]


def test_in_8_bits_it_has_its_gelu_fused_or_not() -> None:
    exact, outputs = network()(Tokens(tokens())), []
    for fuses in (False, True):
        small = network()
        if fuses:
            small.fuse()
        small.quantise()
        assert [type(module) for module in small] == [Fp8LinearGelu, nn.Identity, Fp8Linear]
        outputs.append(small(Tokens(tokens(), tokens().norm(dim=-1).amax())))
    assert torch.equal(*outputs)
    assert float((outputs[0] - exact).norm() / exact.norm()) < 0.1
