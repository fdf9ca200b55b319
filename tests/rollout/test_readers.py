"""Reading videos and images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.videos import read_video
from tetherflow.errors import VideoError
from tetherflow.rollout.readers import count_frames, read_frames, stream_video
from tetherflow.rollout.writers import VideoWriter


def test_an_image_is_one_frame(tmp_path: Path) -> None:
    pixels = torch.randint(256, (3, 20, 30), dtype=torch.uint8)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    assert torch.equal(read_video(tmp_path / "image.png"), pixels[None])


def test_a_streamed_video_equals_the_whole(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "clip.mp4") as writer:
        writer.append(torch.randint(256, (23, 3, 32, 32), dtype=torch.uint8))
    pieces = list(stream_video(tmp_path / "clip.mp4", frames=5))
    assert [len(piece) for piece in pieces] == [5, 5, 5, 5, 3]
    assert torch.equal(torch.cat(pieces), read_video(tmp_path / "clip.mp4"))


def test_frames_are_counted_and_read_one_by_one(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "clip.mp4") as writer:
        writer.append(torch.randint(256, (23, 3, 32, 32), dtype=torch.uint8))
    whole = read_video(tmp_path / "clip.mp4")
    assert count_frames(tmp_path / "clip.mp4") == 23
    single = read_frames(tmp_path / "clip.mp4", [22, 0, 7, 40])
    assert sorted(single) == [0, 7, 22]
    assert all(torch.equal(frame, whole[index]) for index, frame in single.items())


def test_what_is_no_video_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("not a video at all")
    with pytest.raises(VideoError, match=r"notes\.mp4"):
        read_video(tmp_path / "notes.mp4")
    with pytest.raises(VideoError, match="gone"):
        read_video(tmp_path / "gone.mp4")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(VideoError, match="empty"):
        read_video(tmp_path / "empty.mp4")
    (tmp_path / "words.txt").write_text("a cat riding a bicycle\n" * 60)
    with pytest.raises(VideoError, match=r"words\.txt is text, not a video"):
        read_video(tmp_path / "words.txt")
