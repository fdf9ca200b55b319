"""What videos are judged against: real clips of the same prompts, which show what the videos should."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch

from tetherflow.backbone import Backbone
from tetherflow.errors import EvaluationError
from tetherflow.evaluate.bootstrap import Estimate
from tetherflow.evaluate.features import FrameFeatures
from tetherflow.evaluate.frechet import Moments, frechet_distance


@attrs.frozen(eq=False)
class Reference:
    """Real clips of P prompts, C of each.

    Attributes:
        clips: moments of the frames' features of each clip, batch dimension `[P · C]`, prompt after prompt.
        each: C, clips of a prompt.
    """

    clips: Moments
    each: int

    @classmethod
    def of(cls, backbone: Backbone, prompts: Sequence[str], each: int, frames: int) -> Reference:
        """Make the real clips of prompts.

        Args:
            backbone: what the clips belong to.
            prompts: what they show: the videos' prompts, in order.
            each: clips of each prompt; at least two.
            frames: length of a clip in video frames: that of a window.

        Raises:
            TetherflowError: The backbone ships no clips, or none of a prompt.
            EvaluationError: There are too few clips, or not those that were asked for.
        """
        if each < 2:
            raise EvaluationError(
                f"{each} reference clips of a prompt are no distribution; give at least two"
            )
        features = FrameFeatures()
        clips = [features(clip) for clip in backbone.reference_clips(prompts, each, frames)]
        if len(clips) != len(prompts) * each or any(len(clip) != frames for clip in clips):
            raise EvaluationError(
                f"{type(backbone).__name__} gave {len(clips)} reference clips, or clips of another length; "
                f"{each} of {frames} frames were asked for, for each of {len(prompts)} prompts"
            )
        return cls(Moments.of(torch.stack(clips)), each)

    @property
    def prompts(self) -> Moments:
        """Moments of all clips of each prompt, batch dimension `[P]`."""
        count = len(self.clips.count) // self.each
        return self.clips.combine(torch.eye(count).repeat_interleave(self.each, dim=1))

    def against_itself(self, *, resamples: int = 200, seed: int = 0) -> Estimate:
        """The quality that real videos would score: what a perfect model cannot be told from.

        Args:
            resamples: how often one clip of each prompt is held against the others of the same prompts.
            seed: of the choice.

        Returns:
            Mean, 2.5 % and 97.5 % quantile of the distances.
        """
        count = len(self.clips.count) // self.each
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(self.each, (resamples, count), generator=generator)
        held = torch.nn.functional.one_hot(chosen, self.each).double().flatten(1)
        distances = frechet_distance(
            self.clips.combine(1 - held).gaussian(), self.clips.combine(held).gaussian()
        )
        low, high = torch.quantile(distances, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return Estimate(float(distances.mean()), low, high)
