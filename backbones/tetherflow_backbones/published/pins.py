"""The published files by name, as `pins.yaml` pins them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tetherflow.weights import PublishedFile


@cache
def pins() -> dict[str, PublishedFile]:
    """Every published file that is known here, by `owner/repository/path`."""
    text = Path(__file__).with_name("pins.yaml").read_text(encoding="utf-8")
    content: dict[str, dict[str, Any]] = yaml.safe_load(text)
    files = [
        PublishedFile(repo, path, entry["revision"], **facts)
        for repo, entry in content.items()
        for path, facts in entry["files"].items()
    ]
    return {file.name: file for file in files}
