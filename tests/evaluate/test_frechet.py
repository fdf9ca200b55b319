"""The Fréchet distance against closed forms, and its sufficient statistics."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tetherflow.errors import EvaluationError
from tetherflow.evaluate.frechet import Gaussian, Moments, frechet_distance


def random_gaussian(seed: int, size: int) -> Gaussian:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(size, size + 1, generator=generator, dtype=torch.float64)
    return Gaussian(torch.randn(size, generator=generator, dtype=torch.float64), factor @ factor.T)


def diagonal(mean: list[float], deviations: list[float]) -> Gaussian:
    return Gaussian(
        torch.tensor(mean, dtype=torch.float64), torch.tensor(deviations, dtype=torch.float64).square().diag()
    )


def test_diagonal_gaussians_have_a_closed_form() -> None:
    a, b = diagonal([0, 1, 2], [1, 2, 3]), diagonal([1, 1, 0], [2, 2, 0.5])
    # |Δμ|² + Σ (σa − σb)²
    assert float(frechet_distance(a, b)) == pytest.approx(1 + 0 + 4 + 1 + 0 + 6.25)


def test_a_scaled_covariance_has_a_closed_form() -> None:
    a = random_gaussian(0, 6)
    b = Gaussian(a.mean + 0.5, 9 * a.covariance)
    assert float(frechet_distance(a, b)) == pytest.approx(6 * 0.25 + 4 * float(a.covariance.trace()))


@given(st.integers(0, 10_000), st.integers(1, 8))
def test_it_is_symmetric_zero_on_itself_and_obeys_the_triangle(seed: int, size: int) -> None:
    a, b, c = (random_gaussian(3 * seed + k, size) for k in range(3))
    ab, ba, bc, ac = (float(frechet_distance(*pair)) for pair in ((a, b), (b, a), (b, c), (a, c)))
    assert ab == pytest.approx(ba, rel=1e-6, abs=1e-6)
    assert float(frechet_distance(a, a)) == pytest.approx(0, abs=1e-6)
    assert ac**0.5 <= ab**0.5 + bc**0.5 + 1e-6


def test_it_does_not_depend_on_the_axes() -> None:
    a, b = random_gaussian(1, 5), random_gaussian(2, 5)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    turned = [Gaussian(turn @ g.mean, turn @ g.covariance @ turn.T) for g in (a, b)]
    torch.testing.assert_close(frechet_distance(*turned), frechet_distance(a, b))


def test_degenerate_distributions_have_a_distance() -> None:
    point = Moments.of(torch.ones(9, 4)).gaussian()
    line = Moments.of(torch.arange(9.0)[:, None].expand(9, 4)).gaussian()
    assert float(frechet_distance(point, point)) == 0
    # All mass on a point: the mean's distance and the other's whole variance.
    assert float(frechet_distance(point, line)) == pytest.approx(4 * 3**2 + 4 * 7.5)
    assert float(frechet_distance(line, point)) == pytest.approx(4 * 3**2 + 4 * 7.5)


def test_a_batch_equals_its_members() -> None:
    reference, sets = random_gaussian(0, 5), [random_gaussian(k, 5) for k in range(1, 7)]
    batch = Gaussian(
        torch.stack([g.mean for g in sets]).view(2, 3, 5),
        torch.stack([g.covariance for g in sets]).view(2, 3, 5, 5),
    )
    each = torch.stack([frechet_distance(reference, g) for g in sets]).view(2, 3)
    torch.testing.assert_close(frechet_distance(reference, batch), each)


def test_moments_of_parts_add_up_to_those_of_the_whole() -> None:
    vectors = torch.randn(4, 30, 7)
    whole = Moments.of(vectors.flatten(0, 1)).gaussian()
    parts = Moments.of(vectors)
    halves = [parts[half].combine(torch.ones(2)) for half in (slice(2), slice(2, None))]
    for joined in (parts.combine(torch.ones(4)), halves[0] + halves[1]):
        torch.testing.assert_close(joined.gaussian().mean, whole.mean)
        torch.testing.assert_close(joined.gaussian().covariance, whole.covariance)
    torch.testing.assert_close(whole.covariance, torch.cov(vectors.flatten(0, 1).double().T))
    twice = parts.combine(torch.tensor([2, 0, 1, 0])).gaussian()
    repeated = Moments.of(torch.cat([vectors[0], vectors[0], vectors[2]])).gaussian()
    torch.testing.assert_close(twice.covariance, repeated.covariance)


def test_one_vector_is_no_distribution() -> None:
    with pytest.raises(EvaluationError, match="two frames"):
        Moments.of(torch.ones(1, 3)).gaussian()
