"""Draws the filmstrip of the README: `python docs/filmstrip.py OUT.png LABEL=VIDEO.mp4 …`."""

from __future__ import annotations

import sys

from tetherflow.report.filmstrip import filmstrip, frames_at

SECONDS = (5, 30, 60, 120, 240)


def main(out: str, *videos: str) -> None:
    """Draw one row a video, one column a time, and write a PNG."""
    labelled = dict(video.split("=", 1) for video in videos)
    rows = {label: frames_at(path, SECONDS) for label, path in labelled.items()}
    filmstrip(rows, [f"{second} s" for second in SECONDS], cell=128).save(out, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
