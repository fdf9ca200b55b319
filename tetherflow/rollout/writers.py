"""Video files, written frame by frame: H.264 in MP4, whole or clearly marked as cut short.

A rollout lasts minutes and may be stopped at any moment, so the frames go to a fragmented MP4 beside the
target (`clip.mp4.part`), which plays up to its last fragment even if the process is killed. Closing copies
its packets, without encoding again, into an ordinary MP4 with the index at the front (browsers start it at
once) and renames that to the target.
"""

from __future__ import annotations

import os
import re
import tempfile
import unicodedata
from pathlib import Path
from types import TracebackType
from typing import Final

import attrs
import av
import numpy as np
import torch
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from tetherflow.errors import OutputError, VideoError

_FRAGMENT_SECONDS: Final = 2
_ENCODER: Final = {
    "preset": "fast",
    # Without reordered frames a fragment needs no edit list to start at time 0.
    "bf": "0",
    # x264's AVX-512 code reads past the picture, so its output varies from run to run at many sizes; its SSE2
    # code gives the bits of its plain C, at three times the speed. Other processors ignore the option.
    "x264-params": "asm=SSE2",
}
_THREADS: Final = 4
"""Of the encoder, on any machine: x264 gives the same bytes for the same number, and notes it in the file."""
_SLUG_BYTES: Final = 60
_BT709: Final = 1  # the same number in all three tables of ITU-T H.273


class VideoWriter:
    """Appends frames to an MP4 as they come; memory does not grow with length.

    Equal frames give equal bytes (same FFmpeg build) on any x86 processor, with any number of cores: the
    encoder runs its portable code on a fixed number of threads, since x264's output depends on both, and no
    date is written. Colours are tagged BT.709, limited range. An odd height or width is made even by
    repeating the last row or column, which `yuv420p` needs.

    Use it as a context manager, which closes with `interrupted=True` when an exception passes through
    (Ctrl-C included), or call `close` yourself.
    """

    def __init__(self, path: Path | str, *, fps: int = 16, crf: int = 18) -> None:
        """Prepare to write; nothing is created before the first frame.

        Args:
            path: the target; it ends in `.mp4` and its folder exists. An older file there is replaced.
            fps: frames a second.
            crf: x264's constant rate factor, 0 (lossless) to 51; 18 is visually lossless.

        Raises:
            OutputError: `path` is no `.mp4`.
        """
        self.path = Path(path)
        if self.path.suffix != ".mp4":
            raise OutputError(f"cannot write {self.path}: the name of a video must end in .mp4")
        self.frames_written = 0
        self._fps = fps
        self._crf = crf
        self._part = self.path.with_name(self.path.name + ".part")
        self._open: _Open | None = None
        self._closed = False

    def append(self, frames: torch.Tensor) -> None:
        """Encode frames after those already written.

        Args:
            frames: uint8 `[n, 3, H, W]`, RGB, on any device; H and W as in the first call.

        Raises:
            VideoError: another dtype or shape, or the writer is closed.
            OutputError: the file cannot be written (no space left, no permission).
        """
        if self._closed:
            raise VideoError(f"{self.path.name}: frames came after the video was closed")
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3:
            raise VideoError(f"frames must be uint8 [n, 3, H, W], not {frames.dtype} {list(frames.shape)}")
        if len(frames) == 0:
            return
        height, width = frames.shape[2:]
        try:
            if self._open is None:
                self._open = _Open.create(self._part, height, width, self._fps, self._crf)
            if (height, width) != (self._open.height, self._open.width):
                raise VideoError(
                    f"{self.path.name}: the video is {self._open.height}×{self._open.width} (H×W), "
                    f"but frames of {height}×{width} came"
                )
            # numpy's copy, not torch's: a writer in a thread of its own must not wake a second set of OpenMP
            # threads, which would spin beside the first.
            for frame in _even(frames.cpu()).permute(0, 2, 3, 1).numpy():
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                self._open.encode(picture)
                self.frames_written += 1
        except (OSError, av.FFmpegError) as error:
            raise self._unwritable(error) from error

    def close(self, *, interrupted: bool = False) -> Path | None:
        """Finish the file; a second call does nothing.

        Args:
            interrupted: the rollout ended early. The video is then `<name>.interrupted.mp4`, so that
                nothing takes it for the whole one; it plays all the same.

        Returns:
            Where the video is; None when no frame was ever appended, or on a second call.

        Raises:
            OutputError: the file cannot be written. What was encoded stays in `<name>.mp4.part`.
        """
        if self._closed:
            return None
        self._closed = True
        if self._open is None:
            return None
        target = self.path.with_suffix(".interrupted.mp4") if interrupted else self.path
        whole = self.path.with_name(self.path.name + ".tmp")
        try:
            self._open.finish()
            _copy_packets(self._part, whole)
            os.replace(whole, target)
            self._part.unlink()
        except (OSError, av.FFmpegError) as error:
            whole.unlink(missing_ok=True)
            raise self._unwritable(error) from error
        return target

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(interrupted=kind is not None)

    def _unwritable(self, error: OSError | av.FFmpegError) -> OutputError:
        kept = f" What was encoded so far is in {self._part}." if self._part.exists() else ""
        return OutputError(f"cannot write {self.path}: {error.strerror or error}.{kept}")


@attrs.define
class _Open:
    """An encoder and the fragmented file it feeds."""

    container: OutputContainer
    stream: VideoStream
    height: int
    width: int

    @classmethod
    def create(cls, path: Path, height: int, width: int, fps: int, crf: int) -> _Open:
        fragments = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
        container = av.open(str(path), "w", format="mp4", options=fragments)
        stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf), **_ENCODER})
        stream.height, stream.width = height + height % 2, width + width % 2
        stream.pix_fmt = "yuv420p"
        codec = stream.codec_context
        codec.thread_type, codec.thread_count = "FRAME", _THREADS
        codec.gop_size = _FRAGMENT_SECONDS * fps
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
        codec.color_range = ColorRange.MPEG
        return cls(container, stream, height, width)

    def encode(self, frame: av.VideoFrame) -> None:
        converted = frame.reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        self.container.mux(self.stream.encode(converted))

    def finish(self) -> None:
        try:
            self.container.mux(self.stream.encode(None))
        finally:
            self.container.close()


def _copy_packets(source: Path, target: Path) -> None:
    """Copy the packets of `source` into an ordinary MP4 whose index stands at the front."""
    with (
        av.open(str(source)) as reader,
        av.open(str(target), "w", format="mp4", options={"movflags": "+faststart"}) as writer,
    ):
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux(video=0):
            if packet.dts is not None:  # the demuxer ends with an empty packet
                packet.stream = stream
                writer.mux(packet)


def _even(frames: torch.Tensor) -> torch.Tensor:
    """Repeat the last row and column of `[n, 3, H, W]` where H or W is odd."""
    if frames.shape[2] % 2:
        frames = torch.cat([frames, frames[:, :, -1:]], dim=2)
    if frames.shape[3] % 2:
        frames = torch.cat([frames, frames[:, :, :, -1:]], dim=3)
    return frames


def safe_name(prompt: str, index: int) -> str:
    """A file name, without suffix, for the video of a prompt.

    Args:
        prompt: any text: empty, `..`, with slashes or newlines, of any length, in any script.
        index: number of the video in its run, from 0; it alone keeps names apart.

    Returns:
        The index and the prompt's first words, such as `0007-a-red-circle`: letters, digits and dashes
        only, at most 70 bytes or so in UTF-8, never empty and never a path.
    """
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", prompt[:1000]).lower())
    slug = "-".join(words).encode()[:_SLUG_BYTES].decode(errors="ignore").rstrip("-")
    return f"{index:04d}-{slug}" if slug else f"{index:04d}"


def require_writable(folder: Path | str, chosen_by: str = "output.folder, or --output") -> Path:
    """Create an output folder and prove, before any work, that a file can be written in it.

    Args:
        folder: the folder; missing parents are created too.
        chosen_by: what the user chooses it by.

    Returns:
        The folder, as a path.

    Raises:
        OutputError: it cannot be created or written; says why and what to do.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(b"probe")
    except OSError as error:
        reason = "it is a file" if path.is_file() else error.strerror or error
        raise OutputError(
            f"cannot write into the folder {path}: {reason}. Choose another ({chosen_by}), or make this one "
            "writable."
        ) from error
    return path
