"""Videos written beside the rollout: the same as written at once, and errors that are not lost."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
import torch

from tetherflow.errors import OutputError
from tetherflow.recipe import Recipe, load_recipe
from tetherflow.rollout.batch_output import BatchOutput
from tetherflow.rollout.batches import items_of
from tetherflow.rollout.open_session import open_session
from tetherflow.rollout.run_folder import RunFolder
from tetherflow.rollout.session import Chunk, Session
from tetherflow.rollout.writers import VideoWriter

pytestmark = pytest.mark.usefixtures("toy")
CPU = torch.device("cpu")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    changes = ["backbone.use=toy", "rollout.samples=2", "rollout.latent_frames=30"]
    return load_recipe("tethercache", [*changes, f"output.folder='{tmp_path / 'runs'}'"])


def chunks(recipe: Recipe, session: Session | None = None) -> list[Chunk]:
    session = session or open_session(recipe, CPU)
    items = items_of(recipe)
    stream = session.stream(
        [item.prompt for item in items], latent_frames=30, seeds=[item.seed for item in items]
    )
    return list(stream)


def test_bytes_are_those_of_writing_at_once(recipe: Recipe, tmp_path: Path) -> None:
    items, folder = items_of(recipe), RunFolder.create(recipe)
    output = BatchOutput(folder, items, 16, CPU)
    made = chunks(recipe)
    counts = [output.append(chunk) for chunk in made]
    records = output.close("complete")
    assert counts == [2 * 9, *[2 * 12] * 9]
    assert [record.frames for record in records] == [117, 117]
    assert len(output.chunk_seconds) == 10
    for row, (item, record) in enumerate(zip(items, records, strict=True)):
        with VideoWriter(tmp_path / f"{row}.mp4") as writer:
            for chunk in made:
                assert chunk.frames is not None
                writer.append(chunk.frames[row])
        assert record.file is not None
        assert (folder.path / record.file).read_bytes() == (tmp_path / f"{row}.mp4").read_bytes()
        assert folder.video(item).exists()


def test_what_waits_when_it_is_stopped_is_still_written(recipe: Recipe) -> None:
    folder = RunFolder.create(recipe)
    output = BatchOutput(folder, items_of(recipe), 16, CPU)
    for chunk in chunks(recipe)[:3]:
        output.append(chunk)
    for record in output.close("interrupted"):
        assert (record.status, record.frames) == ("interrupted", 33)
        assert record.file is not None
        with av.open(str(folder.path / record.file)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 33


def spoil_the_second_video(folder: RunFolder, recipe: Recipe) -> None:
    """A folder stands where its file should go."""
    folder.video(items_of(recipe)[1]).with_suffix(".mp4.part").mkdir()


def append_all(output: BatchOutput, made: list[Chunk]) -> None:
    for chunk in made:
        output.append(chunk)


def test_error_while_writing_reaches_the_caller(recipe: Recipe) -> None:
    folder = RunFolder.create(recipe)
    output = BatchOutput(folder, items_of(recipe), 16, CPU)
    spoil_the_second_video(folder, recipe)
    made = chunks(recipe)
    with pytest.raises(OutputError, match="cannot write"):
        append_all(output, made * 20)
    with pytest.raises(OutputError, match="cannot write"):
        output.close("failed")
    assert [record.status for record in folder.records()] == ["failed", "failed"]


def test_error_in_the_last_chunk_is_told_at_the_end(recipe: Recipe) -> None:
    folder = RunFolder.create(recipe)
    output = BatchOutput(folder, items_of(recipe), 16, CPU)
    spoil_the_second_video(folder, recipe)
    output.append(chunks(recipe)[0])
    with pytest.raises(OutputError, match="cannot write"):
        output.close("complete")
    assert folder.records()[1].status == "failed"


def test_chunk_that_was_not_decoded_is_refused(recipe: Recipe) -> None:
    output = BatchOutput(RunFolder.create(recipe), items_of(recipe), 16, CPU)
    with pytest.raises(TypeError, match="let the session decode"):
        output.append(Chunk(0, torch.zeros(2, 3, 4, 8, 8), None))
    output.close("failed")
