"""The folder of one run: its videos, the resolved recipe, a lock, a log and the results."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import attrs

from tetherflow.errors import OutputError
from tetherflow.files import write_whole
from tetherflow.recipe import Recipe, dump_recipe
from tetherflow.rollout.batches import Item
from tetherflow.rollout.writers import require_writable, safe_name

Status = Literal["complete", "interrupted", "failed"]


@attrs.frozen
class VideoRecord:
    """What is known of one video after a run.

    Attributes:
        index: its place in the run, from 0.
        file: the video, relative to the run folder; None if it has no frame.
        prompt: what it shows, at its beginning if that changes.
        switches: the prompts after the first, each with the latent frame at or after which it begins.
        sample: which of the prompt's videos it is.
        seed: seed of its noise.
        status: whether it is whole, was cut short from outside, or ended in an error.
        latent_frames: latent frames generated.
        frames: video frames written.
        seconds: wall time from its start to its end, its batch's other videos included.
        chunk_seconds: wall time of each chunk, decoding and writing included.
        cache_bytes: size of its batch's cache, side stores and latents kept to write it anew included.
        peak_memory_bytes: most memory that its process held so far: of the GPU if there is one.
    """

    index: int
    file: str | None
    prompt: str
    switches: list[dict[str, Any]]
    sample: int
    seed: int
    status: Status
    latent_frames: int
    frames: int
    seconds: float
    chunk_seconds: list[float]
    cache_bytes: int
    peak_memory_bytes: int


@attrs.frozen
class Stop:
    """Why a process stopped early.

    Attributes:
        error: the class of the error; empty if a signal stopped it.
        arguments: the error's arguments.
        signal: the signal's number; None if an error stopped it.
    """

    error: str = ""
    arguments: list[Any] = attrs.field(factory=list)
    signal: int | None = None


@attrs.frozen
class RunFolder:
    """A run's folder.

    Attributes:
        path: the folder, absolute.
    """

    path: Path

    @classmethod
    def create(cls, recipe: Recipe, now: datetime | None = None) -> RunFolder:
        """Make a new folder, named by date, time and recipe, and put the resolved recipe into it.

        Args:
            recipe: what is run.
            now: date and time for the name; the current ones if omitted.

        Raises:
            OutputError: The folder cannot be made or written.
        """
        parent = require_writable(Path(recipe.output.folder).expanduser().absolute())
        name = safe_name(recipe.output.name or "", 0).partition("-")[2] or "run"
        stem = f"{now or datetime.now():%Y%m%d-%H%M%S}-{name}"
        for attempt in range(1, 1000):
            path = parent / (stem if attempt == 1 else f"{stem}-{attempt}")
            try:
                path.mkdir()
            except FileExistsError:
                continue  # another run of the same second
            except OSError as error:
                raise OutputError(f"cannot make the run folder {path}: {error.strerror or error}") from error
            folder = cls(path)
            folder._write("recipe.yaml", dump_recipe(recipe))
            (path / "videos").mkdir()
            (path / ".records").mkdir()
            return folder
        raise OutputError(f"cannot find a free name for the run folder beside {parent / stem}")

    @property
    def log(self) -> Path:
        """The log, one JSON object a line."""
        return self.path / "run.jsonl"

    def video(self, item: Item) -> Path:
        """Where an item's video belongs."""
        return self.path / "videos" / f"{safe_name(item.prompt, item.index)}.mp4"

    def write_lock(self, lock: dict[str, Any]) -> None:
        """Write down what the run depended on."""
        self._write("lock.json", _json(lock))

    def add_record(self, record: VideoRecord) -> None:
        """Note how a video came out; processes may do so at once."""
        self._write(f".records/{record.index:06d}.json", _json(attrs.asdict(record)))

    def add_stop(self, rank: int, stop: Stop) -> None:
        """Note why a process stopped early."""
        self._write(f".records/stop-{rank}.json", _json(attrs.asdict(stop)))

    def records(self) -> list[VideoRecord]:
        """How the videos came out so far, in order."""
        paths = sorted((self.path / ".records").glob("[0-9]*.json"))
        return [VideoRecord(**json.loads(path.read_text(encoding="utf-8"))) for path in paths]

    def stops(self) -> list[Stop]:
        """Why processes stopped early, by rank."""
        paths = sorted((self.path / ".records").glob("stop-*.json"))
        return [Stop(**json.loads(path.read_text(encoding="utf-8"))) for path in paths]

    def finish(self, results: dict[str, Any]) -> None:
        """Write the results and remove the notes that they were gathered from."""
        self._write("results.json", _json(results))
        shutil.rmtree(self.path / ".records")

    def remove_if_empty(self) -> bool:
        """Remove the folder if it holds no video; returns whether it did."""
        if any((self.path / "videos").iterdir()):
            return False
        shutil.rmtree(self.path)
        return True

    def _write(self, name: str, text: str) -> None:
        write_whole(self.path / name, text)


def _json(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
