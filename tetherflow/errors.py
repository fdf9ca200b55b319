"""The errors that Tetherflow raises on purpose; each message says what to do about it."""

from __future__ import annotations


class TetherflowError(Exception):
    """Base of every error that Tetherflow raises on purpose.

    A command line shows its message and no traceback; anything else is a defect and shows both.
    """


class RecipeError(TetherflowError):
    """A recipe file, or an override on the command line, does not describe a pipeline."""


class PluginError(TetherflowError):
    """A plugin is not installed, cannot be loaded, or is not what its entry point promises."""


class PipelineError(TetherflowError):
    """Stages do not fit together: two selectors, none, or an editor with nothing to edit."""


class LayoutError(TetherflowError):
    """The regions of the cache do not add up, or do not suit a stage or the chunk size."""


class WeightsError(TetherflowError):
    """Weights are missing, truncated, or of another architecture."""


class KernelError(TetherflowError):
    """A kernel that was asked for is not installed, or does not run on this device."""


class OutputError(TetherflowError):
    """A folder or file cannot be written."""


class PromptError(TetherflowError):
    """A list of prompts is empty or cannot be read."""


class VideoError(TetherflowError):
    """A video or image cannot be read, or frames cannot be encoded."""


class EvaluationError(TetherflowError):
    """A figure cannot be computed from what was given: too few frames, videos or references."""


class ConformanceError(TetherflowError):
    """A policy breaks a rule of the conformance suite, in a way that no single call of a plugin shows."""


class StageError(TetherflowError):
    """A stage plugin raised, or returned what the engine must refuse.

    Attributes:
        plugin: the plugin's name, as the recipe spells it.
        stage: the hook that was called, such as score or place.
        layer: index of the transformer layer, from 0; None where no layer is concerned.
        chunk: index of the chunk in its rollout, from 0; None outside a rollout.
        message: what went wrong.
    """

    def __init__(self, plugin: str, stage: str, layer: int | None, chunk: int | None, message: str) -> None:
        # All five go to Exception.args, so that the error survives pickling between processes.
        super().__init__(plugin, stage, layer, chunk, message)
        self.plugin = plugin
        self.stage = stage
        self.layer = layer
        self.chunk = chunk
        self.message = message

    def __str__(self) -> str:
        where = [f"stage '{self.stage}'"]
        if self.layer is not None:
            where.append(f"layer {self.layer}")
        if self.chunk is not None:
            where.append(f"chunk {self.chunk}")
        return f"plugin '{self.plugin}' ({', '.join(where)}): {self.message}"
