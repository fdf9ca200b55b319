"""What a chunk cannot take less than: its attention and matrix products alone, timed on the same device."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final

import attrs
import torch
from torch import Tensor, nn

from tetherflow.bench.against import passes_of
from tetherflow.bench.stopwatch import seconds_of
from tetherflow.cache.attention import Attend, Attention, AttentionName, attention_for
from tetherflow.errors import KernelError
from tetherflow.fp8 import Fp8Linear, Fp8LinearGelu, quantise, require_fp8
from tetherflow.rollout.session import Session
from tetherflow.tuning import Tuning

_KERNELS: Final[tuple[AttentionName, ...]] = ("flash-attn-4", "cudnn", "flash", "plain")
PRODUCT: Final = "product"
Shape = tuple[int, int, int]
"""Of a product: rows, inputs, outputs. Of attention: queries, keys, width of all heads."""


@attrs.frozen
class Floor:
    """One operation of a chunk, timed alone.

    Attributes:
        what: `attention`, `prompt attention` or `product`.
        kernel: what computed it.
        shape: see `Shape`.
        calls: how many a chunk has.
        seconds: one call.
        flops: floating-point operations of one call.
        own: whether the recipe computes it so.
    """

    what: str
    kernel: str
    shape: Shape
    calls: int
    seconds: float
    flops: float
    own: bool

    @classmethod
    def timed(
        cls,
        what: str,
        kernel: str,
        shape: Shape,
        calls: int,
        operation: Callable[[], object],
        device: torch.device,
        *,
        own: bool,
    ) -> Floor:
        """The floor of an operation that is there to be called, timed now."""
        flops = math.prod(shape) * (2.0 if what == PRODUCT else 4.0)  # attention is two products
        return cls(what, kernel, shape, calls, seconds_of(operation, device), flops, own)


@attrs.frozen
class Roofline:
    """The floors of one recipe's chunk, with every kernel that the device has.

    Attributes:
        floors: the operations.
    """

    floors: tuple[Floor, ...]

    @property
    def seconds(self) -> float:
        """The floor of a chunk: attention and products alone, with the recipe's kernels."""
        return sum(operation.seconds for operation in self.operations if operation.own)

    @property
    def operations(self) -> list[Operation]:
        """The floors by what they are and what computes them."""
        found: dict[tuple[str, str, bool], list[Floor]] = {}
        for floor in self.floors:
            found.setdefault((floor.what, floor.kernel, floor.own), []).append(floor)
        return [Operation(*key, tuple(floors)) for key, floors in found.items()]


@attrs.frozen
class Operation:
    """All of a chunk's operations of one kind by one kernel.

    Attributes:
        what: see `Floor`.
        kernel: see `Floor`.
        own: whether the recipe computes them so.
        floors: the operations.
    """

    what: str
    kernel: str
    own: bool
    floors: tuple[Floor, ...]

    @property
    def seconds(self) -> float:
        """Their time in a chunk."""
        return sum(floor.calls * floor.seconds for floor in self.floors)

    @property
    def teraflops(self) -> float:
        """10¹² operations a second."""
        return sum(floor.calls * floor.flops for floor in self.floors) / self.seconds / 1e12


@torch.inference_mode()
def measure_roofline(session: Session, tuning: Tuning, prompt: str) -> Roofline:
    """Time a full cache's attention, and the matrix products of a transformer's passes.

    Args:
        session: whose chunk.
        tuning: how its backbone computes.
        prompt: what it is to show; how long it is may matter.
    """
    products, texts = _operations(session, tuning, prompt)
    passes, shape = passes_of(session), session.backbone.cache_shape
    queries, keys = session.chunk_frames * shape.tokens, session.layout.budget * shape.tokens
    width, kinds = shape.heads * shape.head_dim, _product_kinds(session, tuning.products)
    floors, device = [], session.device
    for kernel in _kernels(session):
        size, calls = (queries, keys, width), passes * shape.layers
        attend = partial(kernel, *(_random(session, length, width) for length in (queries, keys, keys)))
        own = kernel.name == session.attention.name
        floors.append(Floor.timed("attention", kernel.name, size, calls, attend, device, own=own))
    for (name, size), (on_prompt, calls) in texts.items():
        floors.append(
            Floor.timed("prompt attention", name, size, passes * calls, on_prompt, device, own=True)
        )
    for (product, small), calls in products.items():
        for kind in kinds:
            # Of a recipe in 8 bits those that are; of another, what it would be if all were.
            in_8_bits = kind == "fp8" and (small or tuning.products != "fp8")
            multiply = _product(session, product, in_8_bits=in_8_bits)
            own = kind == tuning.products
            floors.append(Floor.timed(PRODUCT, kind, product, passes * calls, multiply, device, own=own))
    return Roofline(tuple(floors))


def _kernels(session: Session) -> Iterator[Attention]:
    """The session's attention kernel, and the others that the device has."""
    yield session.attention
    width = session.backbone.cache_shape.head_dim
    for name in _KERNELS if session.device.type == "cuda" else ():  # the CPU has but one worth its name
        if name != session.attention.name:
            with suppress(KernelError):
                yield attention_for(name, session.device, session.dtype, width, session.fuse)


def _product_kinds(session: Session, own: str) -> list[str]:
    """The recipe's kind of products, and fp8 where a GPU computes them."""
    kinds = {"precision", own}
    if session.device.type == "cuda":
        with suppress(KernelError):
            require_fp8(session.device, session.dtype)
            kinds.add("fp8")
    return sorted(kinds, reverse=True)


def _operations(
    session: Session, tuning: Tuning, prompt: str
) -> tuple[Counter[tuple[Shape, bool]], dict[tuple[str, Shape], tuple[Callable[[], object], int]]]:
    """Matrix products and attentions on the prompt of one pass, by shape: one pass is watched, uncompiled.

    Products are told apart by whether they are in 8 bits, too; attentions by their kernels, and with each
    comes one call of it.
    """
    backbone = session.backbone
    products: Counter[tuple[Shape, bool]] = Counter()
    texts: dict[tuple[str, Shape], tuple[Callable[[], object], int]] = {}

    def on_prompt(attend: Attend) -> Attend:
        name = tuning.attention.name if attend is tuning.attention.kernel else attend.__name__

        def attend_watched(query: Tensor, key: Tensor, *others: Any) -> Any:
            kind = name, (query.shape[1], key.shape[1], query.shape[2] * query.shape[3])
            _, calls = texts.get(kind, (None, 0))
            texts[kind] = partial(attend, query, key, *others), calls + 1
            return attend(query, key, *others)

        return attend_watched

    def on_product(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        rows = inputs[0].numel() // module.in_features
        small = isinstance(module, Fp8Linear | Fp8LinearGelu)
        products[(rows, module.in_features, module.out_features), small] += 1

    text = backbone.transformer.prepare_text(backbone.encode_prompts([prompt]))
    frames = session.chunk_frames
    latents = torch.zeros(1, frames, *backbone.latent_shape, device=session.device, dtype=session.dtype)
    timesteps = torch.zeros(1, frames, device=session.device)
    backbone.tune(attrs.evolve(tuning, attention=attrs.evolve(tuning.attention, watch=on_prompt)))
    try:
        with _hooked(backbone.transformer, on_product), torch.compiler.set_stance("force_eager"):
            backbone.transformer(latents, timesteps, text, _Blind())
    finally:
        backbone.tune(tuning)
    return products, texts


class _Blind:
    """A cache whose attention costs nothing."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return value


@contextmanager
def _hooked(network: object, hook: Callable[..., None]) -> Iterator[None]:
    """Call a hook after every linear layer of a network, of any kind."""
    modules = network.modules() if isinstance(network, nn.Module) else []
    handles = [
        module.register_forward_hook(hook)
        for module in modules
        if hasattr(module, "in_features") and hasattr(module, "out_features")
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _random(session: Session, length: int, width: int) -> Tensor:
    """Queries, keys or values at random, `[1, length, heads, width / heads]`."""
    heads = session.backbone.cache_shape.heads
    return torch.randn(1, length, heads, width // heads, device=session.device, dtype=session.dtype)


def _product(session: Session, shape: Shape, *, in_8_bits: bool) -> Callable[[], object]:
    """A product of random numbers."""
    length, inputs, outputs = shape
    x = torch.randn(length, inputs, device=session.device, dtype=session.dtype)
    linear = nn.Linear(inputs, outputs, device=session.device, dtype=session.dtype).requires_grad_(False)
    if not in_8_bits or inputs % 16 or outputs % 16:
        return partial(linear, x)
    limit = x.abs().amax().float()
    return partial(Fp8Linear(linear).product, quantise(x, limit), limit)
