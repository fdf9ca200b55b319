"""The feature space: fixed for ever, and sensitive to what drift does to frames."""

from __future__ import annotations

from importlib import resources

import pytest
import torch
from safetensors.torch import load_file

import tetherflow.evaluate.features as features_module
from tests.evaluate.clips import blurred, clip, contrasted, pixels
from tetherflow.errors import EvaluationError, WeightsError
from tetherflow.evaluate.feature_weights import make_weights
from tetherflow.evaluate.features import FEATURES, FrameFeatures
from tetherflow.evaluate.frechet import Moments, frechet_distance


@pytest.fixture(scope="module")
def features() -> FrameFeatures:
    return FrameFeatures()


def test_the_features_of_a_known_frame_never_change(features: FrameFeatures) -> None:
    ramp = torch.arange(32, dtype=torch.uint8).view(1, 1, 1, 32).expand(1, 3, 48, 32) * 8
    vector = features(ramp)
    assert vector.shape == (1, FEATURES)
    assert vector.dtype == torch.float32
    expected = torch.tensor([-0.027, -0.10377, 0.05717, -0.08643, -0.21252, -0.23444, -0.16919, -0.33889])
    torch.testing.assert_close(vector[0, :8], expected, rtol=0, atol=2e-5)


def test_the_shipped_weights_can_be_made_again() -> None:
    path = resources.files("tetherflow.evaluate").joinpath("features.safetensors")
    shipped, made = load_file(str(path)), make_weights()
    assert shipped.keys() == made.keys()
    for name, weight in made.items():
        torch.testing.assert_close(shipped[name], weight, rtol=1e-3, atol=1e-4)


def test_altered_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "SHA256", "0" * 64)
    with pytest.raises(WeightsError, match="install tetherflow again"):
        FrameFeatures()


def test_a_frame_has_the_same_features_alone_or_among_others(features: FrameFeatures) -> None:
    frames = pixels(clip(0, torch.linspace(0, 5, 70)))
    whole = features(frames)
    torch.testing.assert_close(whole[17], features(frames[17:18])[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(whole[64:], features(frames[64:]), rtol=0, atol=1e-6)
    assert features(frames[:0]).shape == (0, FEATURES)


@pytest.mark.parametrize(
    "frames", [torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8).byte(), torch.zeros(2, 4, 8, 8).byte()]
)
def test_what_is_no_frame_is_refused(features: FrameFeatures, frames: torch.Tensor) -> None:
    with pytest.raises(EvaluationError, match="uint8"):
        features(frames)


def test_distance_grows_with_every_kind_of_degradation(features: FrameFeatures) -> None:
    times = torch.linspace(0, 5, 6)
    reference = Moments.of(features(pixels(torch.cat([clip(s, times) for s in range(100, 260)])))).gaussian()
    real = torch.cat([clip(seed, times) for seed in range(48)])

    def distance(frames: torch.Tensor) -> float:
        return float(frechet_distance(reference, Moments.of(features(pixels(frames))).gaussian()))

    floor = distance(real)
    blur = [floor, *(distance(blurred(real, radius)) for radius in (1, 2, 4))]
    contrast = [floor, *(distance(contrasted(real, gain)) for gain in (1.3, 1.7, 2.5))]
    colour = [floor, *(distance((real + shift).clamp(0, 1)) for shift in (0.1, 0.2, 0.4))]
    missing = [
        floor, *(distance(torch.cat([clip(s, times, shapes=n) for s in range(48)])) for n in (1, 0))
    ]  # fmt: skip
    for series in (blur, contrast, colour, missing):
        assert series == sorted(series)
        assert series[-1] > 3 * floor
    assert blur[1] > 1.1 * floor
