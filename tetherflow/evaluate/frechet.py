"""The Fréchet distance between sets of vectors, each seen as a Gaussian (Heusel et al., arXiv 1706.08500).

Everything here is float64 and takes leading batch dimensions, so that a thousand bootstrap resamples are one
call.
"""

from __future__ import annotations

import attrs
import torch

from tetherflow.errors import EvaluationError


@attrs.frozen(eq=False)
class Moments:
    """Sufficient statistics of sets of vectors; the union of disjoint sets is their sum.

    Attributes:
        count: float64 `[...]`, how many vectors each set holds.
        total: float64 `[..., D]`, their sum.
        outer: float64 `[..., D, D]`, the sum of their outer products.
    """

    count: torch.Tensor
    total: torch.Tensor
    outer: torch.Tensor

    @classmethod
    def of(cls, vectors: torch.Tensor) -> Moments:
        """Moments of one set per batch index, `[..., n, D]`, any floating dtype."""
        x = vectors.double()
        count = torch.full(x.shape[:-2], float(x.shape[-2]), dtype=torch.float64)
        return cls(count, x.sum(dim=-2), x.mT @ x)

    @classmethod
    def zeros(cls, *batch: int, features: int) -> Moments:
        """Moments of empty sets, one per batch index."""
        return cls(
            torch.zeros(*batch, dtype=torch.float64),
            torch.zeros(*batch, features, dtype=torch.float64),
            torch.zeros(*batch, features, features, dtype=torch.float64),
        )

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer)

    def __getitem__(self, index: int | slice | tuple[int | slice, ...] | torch.Tensor) -> Moments:
        return Moments(self.count[index], self.total[index], self.outer[index])

    def combine(self, weights: torch.Tensor) -> Moments:
        """Moments of weighted unions of the sets along the first batch dimension.

        Args:
            weights: `[..., P]`, how often each of the P sets is taken.

        Returns:
            Moments with batch dimensions `[..., *rest]` for sets `[P, *rest]`.
        """
        w = weights.double()
        return Moments(*(torch.tensordot(w, m, dims=1) for m in (self.count, self.total, self.outer)))

    def mean(self) -> torch.Tensor:
        """The mean vectors, float64 `[..., D]`."""
        return self.total / self.count[..., None]

    def gaussian(self) -> Gaussian:
        """The Gaussian with the sets' mean and unbiased covariance.

        Raises:
            EvaluationError: a set holds fewer than two vectors.
        """
        if bool((self.count < 2).any()):
            raise EvaluationError("a distribution needs at least two frames")
        mean = self.mean()
        n = self.count[..., None, None]
        spread = self.outer - n * mean[..., :, None] * mean[..., None, :]
        return Gaussian(mean, spread / (n - 1))


@attrs.frozen(eq=False)
class Gaussian:
    """A normal distribution.

    Attributes:
        mean: float64 `[..., D]`.
        covariance: float64 `[..., D, D]`.
    """

    mean: torch.Tensor
    covariance: torch.Tensor


def frechet_distance(a: Gaussian, b: Gaussian) -> torch.Tensor:
    """The squared Fréchet distance, |μa − μb|² + tr(Ca + Cb − 2 (Ca^½ Cb Ca^½)^½).

    Args:
        a: one distribution or a batch; give the smaller batch first, since its root is the dearer half.
        b: likewise; the batch dimensions broadcast.

    Returns:
        float64 `[...]`, never negative.
    """
    root = _root(a.covariance)
    cross = torch.linalg.eigvalsh(_symmetric(root @ b.covariance @ root)).clamp_min(0).sqrt().sum(dim=-1)
    means = (a.mean - b.mean).square().sum(dim=-1)
    distance: torch.Tensor = means + _trace(a.covariance) + _trace(b.covariance) - 2 * cross
    return distance.clamp_min(0)


def _root(covariance: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(_symmetric(covariance))
    root: torch.Tensor = (vectors * values.clamp_min(0).sqrt()[..., None, :]) @ vectors.mT
    return root


def _symmetric(matrix: torch.Tensor) -> torch.Tensor:
    return (matrix + matrix.mT) / 2


def _trace(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
