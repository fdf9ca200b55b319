"""The fixed feature space in which quality is measured.

A small convolutional net with random filters, after the observation that Fréchet distances in random
feature spaces order degradations much as trained ones do. Its 27 KB of weights ship with the package and are
checked by hash, so that a figure means the same everywhere. It sees colour, contrast, sharpness and the
presence of shapes at three scales; it knows nothing of objects, of text or of time.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Final

import torch
import torch.nn.functional as F
from safetensors.torch import load

from tetherflow.errors import EvaluationError, WeightsError
from tetherflow.evaluate.feature_weights import CHANNELS, SIDE, responses

FEATURES: Final = 2 * sum(CHANNELS)
SHA256: Final = "7d1d9f44ccf845060e94866eed32a3c83eb543edaf5895b659e5f5fc5dc6bda2"
_AT_ONCE: Final = 64


class FrameFeatures:
    """Turns video frames into vectors of 64 numbers.

    A frame is resized to 64×64 (bilinear, anti-aliased) and passes three strided convolutions; the mean and
    the standard deviation over space of all 32 channels, standardised, are its features. The squared
    distance of two vectors is an average over the features: 1 means that they differ by one standard
    deviation of natural-image statistics in each.

    It runs on the frames' device, in float32 without TF32's rounding, so a GPU's figures differ from a CPU's
    in the last digits only. A CPU needs about 0.2 ms a frame.
    """

    def __init__(self) -> None:
        data = resources.files(__package__).joinpath("features.safetensors").read_bytes()
        if hashlib.sha256(data).hexdigest() != SHA256:
            raise WeightsError(
                "features.safetensors is not the file that Tetherflow ships, so its figures would mean "
                "nothing: install tetherflow again"
            )
        self._weights = {torch.device("cpu"): load(data)}

    @torch.no_grad()
    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """Compute the features.

        Args:
            frames: uint8 `[n, 3, H, W]`, RGB, any size, on any device.

        Returns:
            float32 `[n, 64]`, on the CPU.

        Raises:
            EvaluationError: another dtype or shape.
        """
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3:
            raise EvaluationError(
                f"frames must be uint8 [n, 3, H, W], not {frames.dtype} {list(frames.shape)}"
            )
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            pieces = [self._piece(piece) for piece in torch.split(frames, _AT_ONCE)] if len(frames) else []
        return torch.cat([torch.empty(0, FEATURES, device=frames.device), *pieces]).cpu()

    def _piece(self, frames: torch.Tensor) -> torch.Tensor:
        weights = self._on(frames.device)
        images = frames.float() / 127.5 - 1
        images = F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True)
        return (responses(images, weights) - weights["mean"]) * weights["scale"]

    def _on(self, device: torch.device) -> dict[str, torch.Tensor]:
        """The weights on a device."""
        if device not in self._weights:
            cpu = self._weights[torch.device("cpu")]
            self._weights[device] = {name: weight.to(device) for name, weight in cpu.items()}
        return self._weights[device]
