"""What a recipe says, as strict pydantic models."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_serializer, model_validator

from tetherflow.cache.attention import AttentionName
from tetherflow.recipe.prompts import VideoPrompt
from tetherflow.recipe.section import Misfit, Section
from tetherflow.stages import StageName
from tetherflow.tuning import MatrixProducts

DEVICE = r"^(auto|cpu|cuda|cuda:\d+)$"
PATH_FORMATS = frozenset({"path", "file-path", "directory-path"})
"""JSON schema's formats of a plugin's options that are paths."""
Positive = Annotated[int, Field(ge=1)]
Frames = Annotated[int, Field(ge=0)]


_OLDER = ("sink", "bank", "memory")
"""Regions before the recent one."""


class PluginEntry(Section):
    """A plugin and its options, written as `{use: NAME, option: value, …}`."""

    use: str = Field(description="The plugin's name; `tetherflow plugins` lists them.")
    options: dict[str, Any] = Field(default={}, description="The plugin's options, written beside `use`.")

    @model_validator(mode="before")
    @classmethod
    def _fold(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {"use": data.get("use"), "options": {key: data[key] for key in data if key != "use"}}

    @model_serializer
    def _flatten(self) -> dict[str, Any]:
        return {"use": self.use, **self.options}

    @property
    def schedules(self) -> dict[str, PluginEntry]:
        """The options that a schedule sets, and which; only a stage's can be."""
        named = {name: value for name, value in self.options.items() if is_entry(value)}
        return {name: PluginEntry.model_validate(value) for name, value in named.items()}

    def options_json(self) -> str:
        """The options as JSON, for the plugin's own model to validate."""
        return json.dumps(self.options)


def is_entry(value: object) -> bool:
    """Whether an option's value names a plugin of its own: a schedule."""
    return isinstance(value, dict) and isinstance(value.get("use"), str)


class Bands(Section):
    """Bands of token rows as the cache's units."""

    rows: Positive = Field(description="Token rows of a band; they divide those of a frame.")


class Regions(Section):
    """How the budget is split, in latent frames (TetherCache, arXiv 2606.13035, section 3.1)."""

    sink: Frames = Field(default=0, description="First frames, kept for good (S).")
    bank: Frames = Field(default=0, description="Frames after the sink that take in those dropped (`merge`).")
    memory: Frames = Field(default=0, description="Frames recalled from the past (M).")
    recent: Positive | None = Field(
        default=None, description="Newest frames, the current chunk included (R); what is left if omitted."
    )


class Cache(Section):
    """The key-value cache."""

    budget: Positive = Field(default=21, description="Latent frames whose keys and values are held (K).")
    regions: Regions = Field(default=Regions(), description="The budget's split; the parts add up to it.")
    positions: Literal["block-relative", "absolute"] = Field(
        default="block-relative",
        description="Where keys stand in time: in the view, from 0 on, or where the frame was in the video.",
    )

    unit: Literal["frame", "token"] | Bands = Field(
        default="frame", description="What is kept or dropped as a whole: frame, token, or {rows: N}, a band."
    )

    @field_validator("unit", mode="before")
    @classmethod
    def _known_unit(cls, data: Any) -> Any:
        rows = data.get("rows") if isinstance(data, dict) and len(data) == 1 else None
        # Here, since of a union pydantic would report every member that does not fit.
        if data in ("frame", "token") or (type(rows) is int and rows > 0):
            return data
        raise ValueError(f"{data!r} is none of frame, token, {{rows: N}} with N at least 1")

    @model_validator(mode="before")
    @classmethod
    def _fill_recent(cls, data: Any) -> Any:
        """Give the recent region what the others leave."""
        regions = data.get("regions", {}) if isinstance(data, dict) else None
        if not isinstance(regions, dict) or regions.get("recent") is not None:
            return data
        budget, *others = (data.get("budget", 21), *(regions.get(name, 0) for name in _OLDER))
        if not all(type(part) is int for part in (budget, *others)) or budget - sum(others) < 1:
            return data
        return {**data, "regions": {**regions, "recent": budget - sum(others)}}

    @model_validator(mode="after")
    def _adds_up(self) -> Cache:
        regions = self.regions
        given = {name: getattr(regions, name) for name in _OLDER}
        total = sum(given.values()) + (regions.recent or 0)
        # A bank is rare, and need not be spoken of where there is none.
        words = " + ".join(f"{name} {size}" for name, size in given.items() if size or name != "bank")
        if regions.recent is None:
            raise Misfit(
                ("regions",),
                f"{words} = {total} leaves nothing of the budget of "
                f"{self.budget} for recent frames, where the current chunk lives",
            )
        if total != self.budget:
            raise Misfit(
                ("regions",),
                f"{words} + recent {regions.recent} = {total}, "
                f"but the budget is {self.budget}; change a region, or omit 'recent' to give it the rest",
            )
        return self


class Stages(Section):
    """The cache policy: who leaves, who is scored, who stays, and how newcomers are edited."""

    evict: PluginEntry = Field(description="Chooses what leaves when a chunk needs room; exactly one.")
    score: list[PluginEntry] = Field(
        default=[], description="Score the candidates for memory; in order, their scores are summed."
    )
    select: PluginEntry | None = Field(
        default=None, description="Chooses by score who stays in memory; exactly one where there are scorers."
    )
    edit: list[PluginEntry] = Field(
        default=[], description="Edit newcomers before they enter memory; in order."
    )
    merge: PluginEntry | None = Field(
        default=None, description="Works what is dropped into the bank; at most one, where there is a bank."
    )

    @property
    def entries(self) -> list[tuple[StageName, PluginEntry]]:
        """Every stage plugin and the stage it is of, in the order in which they run."""
        listed: dict[StageName, list[PluginEntry | None]] = {
            "evict": [self.evict],
            "score": [*self.score],
            "select": [self.select],
            "edit": [*self.edit],
            "merge": [self.merge],
        }
        return [(stage, entry) for stage, entries in listed.items() for entry in entries if entry]

    @model_validator(mode="after")
    def _selects_what_is_scored(self) -> Stages:
        if self.score and self.select is None:
            raise ValueError(
                "'score' needs exactly one 'select' plugin to act on the scores, and there is none"
            )
        if self.edit and self.select is None:
            raise ValueError("'edit' changes what enters memory, but without 'select' nothing does")
        return self


class Rollout(Section):
    """What is generated."""

    seconds: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Length of each video in seconds; or give `latent_frames`."
    )
    latent_frames: Positive | None = Field(
        default=None, description="Length of each video in latent frames; or give `seconds`."
    )
    prompts: list[VideoPrompt] = Field(
        min_length=1,
        description="What each video shows, in words; or, for one video, a list of prompts over time.",
    )
    prompts_file: str | None = Field(
        default=None,
        description="A text file with one prompt a line, relative to this file; instead of `prompts`.",
    )
    samples: Positive = Field(default=1, description="Videos per prompt, each of its own noise.")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(default=0, description="Seed of all noise.")
    chunk_frames: Positive | None = Field(
        default=None, description="Latent frames denoised together; the backbone's own number if omitted."
    )
    first_frames: str | None = Field(
        default=None, description="A video or image that each rollout continues, relative to this file."
    )

    @model_validator(mode="after")
    def _one_length(self) -> Rollout:
        if (self.seconds is None) == (self.latent_frames is None):
            given = "both are given" if self.seconds is not None else "neither is given"
            raise ValueError(f"give either 'seconds' or 'latent_frames'; {given}")
        return self


class Runtime(Section):
    """How and where it is computed."""

    device: str = Field(
        default="auto",
        pattern=DEVICE,
        description="auto, cpu, cuda or cuda:N; auto takes a GPU if there is one.",
    )
    devices: Positive = Field(
        default=1, description="Processes, each on a GPU or on the CPU, that share the videos."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto is bfloat16 on a GPU and float32 on the CPU."
    )
    numerics: Literal["fast", "parity"] = Field(
        default="fast", description="parity follows the published code's order of operations."
    )
    attention: AttentionName = Field(
        default="auto",
        description="Attention kernel. On a GPU auto takes the first that works of flash-attn-4, cudnn, "
        "flash and plain (torch's own choice); on the CPU it is plain. math is the reference. A compiled "
        "backbone may have a kernel of its own for prompts.",
    )
    compile: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="Whether to compile what lies between attentions; auto does for large models on a GPU, "
        "for which it is worth the minute that it takes.",
    )
    graphs: Literal["auto", "never"] = Field(
        default="auto",
        description="Whether passes are recorded and launched at once (CUDA graphs), which spares the host "
        "their launching; auto does on a GPU, unless memory is low. The videos are the same.",
    )
    matmul: MatrixProducts = Field(
        default="precision",
        description="Type of the transformer's matrix products: that of precision, or fp8, which is faster "
        "on a recent GPU, most of all with the extra fp8 installed, and rounds more, keys and values too.",
    )
    memory: Literal["normal", "low"] = Field(
        default="normal",
        description="low saves GPU memory and costs time: layers share one buffer of rotated keys, and the "
        "autoencoder is on the GPU only while it decodes, frame by frame. The latents are the same.",
    )
    checks: Literal["auto", "strict", "deferred"] = Field(
        default="auto",
        description="When plugins' results are checked: at once, or a chunk later without a stall.",
    )
    threads: Positive | None = Field(
        default=None,
        description="CPU threads a process; half the cores if omitted. It may change the last bits.",
    )
    batch_size: Positive = Field(default=1, description="Videos that are generated together.")

    @model_validator(mode="after")
    def _one_device_is_one(self) -> Runtime:
        if ":" in self.device and self.devices > 1:
            raise ValueError(f"device '{self.device}' names one device, but devices is {self.devices}")
        return self

    @model_validator(mode="after")
    def _parity_is_exact(self) -> Runtime:
        for key, value, exact in (("compile", self.compile, "never"), ("matmul", self.matmul, "precision")):
            if self.numerics == "parity" and value not in ("auto", exact):
                raise Misfit(
                    (key,),
                    f"'{value}' rounds otherwise than the published code, which numerics: parity follows; "
                    f"use {key}: {exact}, or numerics: fast",
                )
        return self


class Output(Section):
    """Where a run is written."""

    folder: str = Field(default="runs", description="Each run gets a folder of its own in this one.")
    name: str | None = Field(default=None, description="Ends the run folder's name; the recipe's if omitted.")


class Recipe(Section):
    """A complete pipeline: a backbone, a cache policy, and what to generate."""

    description: str = Field(default="", description="The recipe in one line.")
    backbone: PluginEntry = Field(description="The video model.")
    cache: Cache = Field(default=Cache.model_validate({}), description="The cache's size and regions.")
    stages: Stages
    rollout: Rollout
    runtime: Runtime = Runtime()
    output: Output = Output()
