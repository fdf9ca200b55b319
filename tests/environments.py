"""Fresh environments, into which packages are installed without a network."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path


def environment(folder: Path) -> Path:
    """Make an environment that also sees the packages of this one; returns its Python."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    for name in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        # addsitedir follows the .pth files there too, so an editable install is seen.
        Path(site, f"outer-{Path(name).parent.name}.pth").write_text(
            f"import site; site.addsitedir({name!r})\n"
        )
    return python


def install(python: Path, *sources: Path) -> None:
    """Install packages from their folders; neither the index nor build isolation, so no network is needed."""
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index"]
    subprocess.run([*command, "--no-deps", "--no-build-isolation", *sources], check=True)
