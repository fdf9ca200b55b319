"""The sizes that fix a causal Wan transformer, and the shapes of its parameters."""

from __future__ import annotations

import attrs


@attrs.frozen
class Architecture:
    """Sizes of a causal Wan transformer (Wan2.1, arXiv 2503.20314, section 4.2).

    The defaults are Wan2.1-T2V-1.3B's, which Self-Forcing fine-tunes.

    Attributes:
        dim: Width of a token.
        ffn_dim: Hidden width of a block's feed-forward network.
        num_heads: Attention heads; `dim // num_heads` is a head's width.
        num_layers: Blocks.
        freq_dim: Width of the sinusoidal time embedding.
        text_dim: Width of a text embedding.
        text_len: Text tokens a prompt is padded to.
        in_dim: Latent channels read.
        out_dim: Latent channels written.
        patch_size: Latent frames, rows and columns that make one token.
        eps: Added to variances in every norm.
    """

    dim: int = 1536
    ffn_dim: int = 8960
    num_heads: int = 12
    num_layers: int = 30
    freq_dim: int = 256
    text_dim: int = 4096
    text_len: int = 512
    in_dim: int = 16
    out_dim: int = 16
    patch_size: tuple[int, int, int] = attrs.field(default=(1, 2, 2), converter=tuple)
    eps: float = 1e-6

    def __attrs_post_init__(self) -> None:
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise ValueError(f"dim {self.dim} does not split into {self.num_heads} heads of even width")
        if self.patch_size[0] != 1:
            raise ValueError(f"patch_size {self.patch_size}: a token must lie within one latent frame")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.num_heads

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Token rows and columns of a latent frame of `height` by `width`.

        Raises:
            ValueError: The patch size does not divide the frame.
        """
        _, rows, columns = self.patch_size
        if height % rows or width % columns:
            raise ValueError(
                f"a latent frame of {height}x{width} does not split into {rows}x{columns} patches"
            )
        return height // rows, width // columns
