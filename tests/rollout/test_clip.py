"""Videos and images as they are meant to be seen: the right way up, by time."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from tetherflow.errors import VideoError
from tetherflow.rollout.clip import Clip, nearest

FPS = 16


def write(path: Path, times: list[Fraction], *, rate: int = 30, degrees: int = 0) -> None:
    """A lossless video whose frame at t seconds has the grey 2 + 40 t, its upper left quarter white."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=rate, width=32, height=16, pix_fmt="bgr0")
        stream.codec_context.time_base = stream.time_base = Fraction(1, 3000)
        if degrees:
            stream.set_display_rotation(degrees)
        for time in times:
            pixels = np.full((16, 32, 3), round(2 + 40 * time), np.uint8)
            pixels[:8, :16] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = int(time * 3000), Fraction(1, 3000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def at(rate: int, count: int) -> list[Fraction]:
    return [Fraction(index, rate) for index in range(count)]


def greys(frames: list[Tensor]) -> list[int]:
    return [int(frame[0, -1, -1]) for frame in frames]


@pytest.mark.parametrize("rate", [8, 12, 16, 24, 25, 30, 60])
def test_a_clip_keeps_its_speed(tmp_path: Path, rate: int) -> None:
    write(tmp_path / "clip.mkv", at(rate, 3 * rate), rate=rate)
    clip = Clip.of(tmp_path / "clip.mkv", FPS)
    frames = list(clip.frames())
    assert len(clip) == len(frames) == 3 * FPS
    seen = torch.tensor(greys(frames))
    expected = 2 + 40 * torch.arange(3 * FPS) / FPS
    assert (seen - expected).abs().max() <= 20 / rate + 0.6  # half a stored frame, and rounding
    if rate == FPS:
        assert clip.shown == tuple(range(3 * FPS))


def test_frames_of_uneven_length_are_shown_in_their_time(tmp_path: Path) -> None:
    times = [Fraction(0), Fraction(1), Fraction(5, 4), Fraction(3, 2), Fraction(7, 4)]
    write(tmp_path / "clip.mkv", times)
    seen = greys(list(Clip.of(tmp_path / "clip.mkv", 4).frames()))
    assert seen[:7] == [2, 2, 2, 42, 42, 52, 62]


def test_frames_from_the_middle_on(tmp_path: Path) -> None:
    write(tmp_path / "clip.mkv", at(10, 20))
    clip = Clip.of(tmp_path / "clip.mkv", FPS)
    assert all(torch.equal(*pair) for pair in zip(list(clip.frames())[5:], list(clip.frames(5)), strict=True))


def test_a_stream_without_times_has_its_own_rate(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "clip.h264"), "w") as container:
        stream = container.add_stream("libx264", rate=25, width=32, height=16, pix_fmt="yuv420p")
        for grey in range(25):
            pixels = np.full((16, 32, 3), 10 * grey, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    assert len(Clip.of(tmp_path / "clip.h264", FPS)) == FPS


@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=20),
    st.integers(1, 60),
)
def test_nearest_equals_a_search_through_all(durations: list[int], fps: int) -> None:
    edges = [Fraction(sum(durations[:index]), 90) for index in range(len(durations) + 1)]
    times, end = edges[:-1], edges[-1]
    if len(times) == 1:
        assert nearest(times, end, fps) == [0]
        return
    count = max(1, round(end * fps))
    assert nearest(times, end, fps) == [
        min(range(len(times)), key=lambda stored: (abs(times[stored] - Fraction(shown, fps)), stored))
        for shown in range(count)
    ]


def corner_of(frame: Tensor) -> tuple[int, int]:
    """Row and column, 0 or 1, of the quarter of a picture that is white."""
    rows, columns = frame.shape[1] // 2, frame.shape[2] // 2
    quarters = frame[0].float().unfold(0, rows, rows).unfold(1, columns, columns).mean(dim=(2, 3))
    row, column = divmod(int(quarters.argmax()), 2)
    return row, column


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize(
    ("orientation", "corner"),
    [(1, (0, 0)), (2, (0, 1)), (3, (1, 1)), (4, (1, 0)), (5, (0, 0)), (6, (0, 1)), (7, (1, 1)), (8, (1, 0))],
)
def test_an_image_is_turned_as_its_camera_was(
    tmp_path: Path, suffix: str, orientation: int, corner: tuple[int, int]
) -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif)
    (frame,) = Clip.of(path, FPS).frames()
    assert frame.shape == ((3, 16, 32) if orientation < 5 else (3, 32, 16))
    assert corner_of(frame) == corner


def test_an_image_of_16_bits_is_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 65535, 512).astype(np.uint16).reshape(16, 32)).save(tmp_path / "deep.png")
    (frame,) = Clip.of(tmp_path / "deep.png", FPS).frames()
    assert (frame[0].float().flatten() - torch.linspace(0, 255, 512)).abs().max() <= 1


@pytest.mark.parametrize(("degrees", "corner"), [(90, (1, 0)), (180, (1, 1)), (-90, (0, 1))])
def test_a_video_is_turned_as_it_is_played(tmp_path: Path, degrees: int, corner: tuple[int, int]) -> None:
    write(tmp_path / "phone.mp4", at(FPS, 3), degrees=degrees)
    frames = list(Clip.of(tmp_path / "phone.mp4", FPS).frames())
    assert [frame.shape for frame in frames] == [(3, 16, 32) if degrees == 180 else (3, 32, 16)] * 3
    assert {corner_of(frame) for frame in frames} == {corner}


def test_what_cannot_be_shown_is_told(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="gone"):
        Clip.of(tmp_path / "gone.mp4", FPS)
    (tmp_path / "notes.mp4").write_text("not a video at all")
    with pytest.raises(VideoError, match=r"notes\.mp4"):
        Clip.of(tmp_path / "notes.mp4", FPS)
