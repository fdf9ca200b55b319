"""Video files: what is written plays, is the same every time, and never poses as whole when it is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import av
import pytest
import torch

from tests.videos import read_video
from tetherflow.errors import OutputError, VideoError
from tetherflow.rollout.writers import VideoWriter, require_writable, safe_name


def moving_disc(frames: int, height: int = 64, width: int = 80) -> torch.Tensor:
    """A red disc that crosses a blue-green gradient: uint8 `[frames, 3, height, width]`."""
    rows = torch.arange(height).view(-1, 1).float()
    columns = torch.arange(width).view(1, -1).float()
    ground = torch.stack([0 * rows * columns + 30, 2 * rows + 0 * columns + 50, 2 * columns + 0 * rows + 60])
    red = torch.tensor([210.0, 40, 30]).view(3, 1, 1)
    centres = [10 + 2.5 * t % (width - 20) for t in range(frames)]
    discs = [((rows - height / 2) ** 2 + (columns - c) ** 2) < 150 for c in centres]
    return torch.stack([torch.where(disc, red, ground) for disc in discs]).to(torch.uint8)


def test_what_is_written_plays_as_h264_with_the_index_in_front(tmp_path: Path) -> None:
    frames = moving_disc(90)
    with VideoWriter(tmp_path / "clip.mp4") as writer:
        for piece in torch.split(frames, [9, 12, 12, 12, 12, 12, 12, 9]):
            writer.append(piece)

    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 16
        assert stream.start_time == 0
        assert stream.duration is not None
        assert stream.time_base is not None
        assert stream.duration * stream.time_base == 90 / 16
    decoded = read_video(tmp_path / "clip.mp4")
    assert decoded.shape == frames.shape
    assert (decoded.float() - frames.float()).abs().mean() < 4
    data = (tmp_path / "clip.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert os.listdir(tmp_path) == ["clip.mp4"]


def test_colours_come_back_as_they_went_in(tmp_path: Path) -> None:
    colours = torch.tensor(
        [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [200, 120, 40]]
    )
    frames = colours.to(torch.uint8).view(-1, 3, 1, 1).expand(-1, -1, 32, 32)
    with VideoWriter(tmp_path / "colours.mp4") as writer:
        writer.append(frames)
    assert (read_video(tmp_path / "colours.mp4").int() - frames.int()).abs().max() <= 3


@pytest.mark.parametrize(("height", "width"), [(64, 80), (96, 160), (128, 128)])
def test_equal_frames_give_equal_bytes_however_they_are_split(
    tmp_path: Path, height: int, width: int
) -> None:
    frames = moving_disc(80, height, width)
    for name, pieces in {"a": [80], "b": [1, 30, 49], "c": [80]}.items():
        with VideoWriter(tmp_path / f"{name}.mp4") as writer:
            for piece in torch.split(frames, pieces):
                writer.append(piece)
    first, *others = [(tmp_path / f"{name}.mp4").read_bytes() for name in "abc"]
    assert all(other == first for other in others)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not limit cores")
@pytest.mark.parametrize(("height", "width"), [(33, 47), (240, 416)])
def test_bytes_do_not_depend_on_the_machines_cores(tmp_path: Path, height: int, width: int) -> None:
    def write(name: str) -> bytes:
        with VideoWriter(tmp_path / name) as writer:
            writer.append(moving_disc(50, height, width))
        return (tmp_path / name).read_bytes()

    cores = os.sched_getaffinity(0)
    expected = write("all.mp4")
    try:
        os.sched_setaffinity(0, {min(cores)})  # the encoder's threads begin with this one's
        assert write("one.mp4") == expected
    finally:
        os.sched_setaffinity(0, cores)


@pytest.mark.parametrize(("height", "width"), [(63, 80), (64, 79), (33, 47)])
def test_odd_sizes_are_made_even_by_repeating_the_edge(tmp_path: Path, height: int, width: int) -> None:
    frames = moving_disc(5, height, width)
    with VideoWriter(tmp_path / "odd.mp4") as writer:
        writer.append(frames)
    decoded = read_video(tmp_path / "odd.mp4")
    assert decoded.shape == (5, 3, height + height % 2, width + width % 2)
    assert (decoded[:, :, :height, :width].float() - frames.float()).abs().mean() < 6


def test_the_target_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "clip.mp4")
    assert os.listdir(tmp_path) == []
    writer.append(moving_disc(80))
    assert os.listdir(tmp_path) == ["clip.mp4.part"]
    assert writer.close() == tmp_path / "clip.mp4"
    assert writer.close() is None
    assert writer.frames_written == 80
    assert os.listdir(tmp_path) == ["clip.mp4"]


def test_an_interrupted_video_says_so_and_plays(tmp_path: Path) -> None:
    def generate() -> None:
        with VideoWriter(tmp_path / "clip.mp4") as writer:
            writer.append(moving_disc(21))
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        generate()
    assert os.listdir(tmp_path) == ["clip.interrupted.mp4"]
    assert len(read_video(tmp_path / "clip.interrupted.mp4")) == 21


def test_nothing_written_leaves_nothing(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "clip.mp4")
    writer.append(moving_disc(1)[:0])
    assert writer.close(interrupted=True) is None
    assert os.listdir(tmp_path) == []


def test_a_killed_process_leaves_a_part_that_plays(tmp_path: Path) -> None:
    script = """
import os, signal, sys, torch
from tetherflow.rollout.writers import VideoWriter
frames = torch.arange(200, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
writer = VideoWriter(sys.argv[1])
writer.append(frames)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "clip.mp4")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert os.listdir(tmp_path) == ["clip.mp4.part"]
    # What x264 still looked ahead at or had in its threads, and the fragment under way, are lost: about five
    # seconds.
    assert len(read_video(tmp_path / "clip.mp4.part")) >= 200 - 80


def test_a_full_disk_is_told_and_the_part_is_kept(tmp_path: Path) -> None:
    script = """
import resource, signal, sys, torch
from tetherflow.errors import OutputError
from tetherflow.rollout.writers import VideoWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with VideoWriter(sys.argv[1]) as writer:
        for _ in range(20):
            writer.append(torch.randint(256, (16, 3, 64, 64), dtype=torch.uint8))
except OutputError as error:
    sys.exit(f"told: {error}")
"""
    target = str(tmp_path / "clip.mp4")
    done = subprocess.run([sys.executable, "-c", script, target], check=False, capture_output=True, text=True)
    assert f"told: cannot write {target}" in done.stderr
    assert "clip.mp4.part" in done.stderr
    assert os.listdir(tmp_path) == ["clip.mp4.part"]


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(2, 3, 32, 32),
        torch.zeros(3, 32, 32, dtype=torch.uint8),
        torch.zeros(2, 1, 32, 32, dtype=torch.uint8),
        torch.zeros(2, 3, 16, 16, dtype=torch.uint8),
    ],
)
def test_frames_that_do_not_fit_are_refused(tmp_path: Path, frames: torch.Tensor) -> None:
    writer = VideoWriter(tmp_path / "clip.mp4")
    writer.append(moving_disc(2, 32, 32))
    with pytest.raises(VideoError, match="frames"):
        writer.append(frames)
    writer.close()
    with pytest.raises(VideoError, match="closed"):
        writer.append(moving_disc(2, 32, 32))


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"\.mp4"):
        VideoWriter(tmp_path / "clip.avi")


PROMPTS = [
    "a red circle and a blue square",
    "",
    "..",
    "../../etc/passwd",
    "/absolute\\windows:stream",
    "line\nbreak\r\n\ttab\x00null\x1b[31m",
    "x" * 10_000,
    "ein Fuß läuft über die Brücke",
    "红色的圆 " * 300,
    "🎈" * 50,
    "\udcff broken surrogate",
    "-rf *",
    "%2e%2e%2f $(touch gone) `id`",
]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_name_never_leaves_its_folder(tmp_path: Path, prompt: str) -> None:
    name = safe_name(prompt, 7)
    path = tmp_path / f"{name}.interrupted.mp4.part"
    path.touch()
    assert path.resolve().parent == tmp_path.resolve()
    assert os.listdir(tmp_path) == [path.name]
    assert name.startswith("0007")
    assert len(name.encode()) < 100
    assert all(character.isalnum() or character == "-" for character in name)


def test_names_are_readable_and_distinct() -> None:
    assert safe_name("A red circle, and a BLUE square!", 3) == "0003-a-red-circle-and-a-blue-square"
    assert safe_name("../..", 3) == "0003"
    assert len({safe_name(prompt, index) for index, prompt in enumerate(["a", "a", "", "A", "/a"])}) == 5


def test_an_output_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    assert require_writable(tmp_path / "runs" / "today") == tmp_path / "runs" / "today"
    assert os.listdir(tmp_path / "runs" / "today") == []


def test_an_unwritable_output_folder_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"output\.folder"):
        require_writable(tmp_path / "file" / "runs")
    (tmp_path / "closed").mkdir(mode=0o500)
    if os.geteuid() != 0:  # root may write anywhere
        with pytest.raises(OutputError, match="Permission denied"):
            require_writable(tmp_path / "closed")
