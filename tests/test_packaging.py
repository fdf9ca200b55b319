"""What an installation brings along."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tetherflow.recipe import bundled_recipes

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without index or isolation, so that no network is needed."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
    ]
    subprocess.run([*build, "--wheel-dir", folder, ROOT], check=True)
    (path,) = folder.glob("tetherflow-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel is installed."""
    folder = tmp_path_factory.mktemp("installed")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*install, "--target", folder, wheel], check=True)
    return folder


def test_wheel_holds_three_packages_recipes_and_weights(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"tetherflow", "tetherflow_policies", "tetherflow_backbones", "tetherflow-0.1.0.dist-info"}
    recipes = {Path(name).stem for name in names if name.startswith("tetherflow/_recipes/")}
    assert recipes == set(bundled_recipes())
    weights = [name for name in names if name.startswith("tetherflow_backbones/mini/weights/")]
    assert any(name.endswith(".safetensors") for name in weights)
    assert {f"{package}/py.typed" for package in tops if "dist-info" not in package} <= set(names)
    assert "tetherflow-0.1.0.dist-info/licenses/LICENSE" in names
    sizes = {info.filename: info.file_size for info in zipfile.ZipFile(wheel).infolist()}
    assert sum(sizes[name] for name in weights) <= 24e6


def test_installed_wheel_runs_a_shipped_recipe_from_any_folder(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    where = "import tetherflow as t, tetherflow_policies as p; print(t.__file__, p.__file__)"
    options = {"check": True, "capture_output": True, "text": True, "cwd": tmp_path, "env": environment}
    found = subprocess.run([sys.executable, "-c", where], **options)
    assert all(path.startswith(str(installed)) for path in found.stdout.split())
    command = [sys.executable, "-m", "tetherflow", "run", "quickstart", "--set", "rollout.latent_frames=2"]
    video = Path(subprocess.run(command, **options).stdout.strip())
    assert video.is_relative_to(tmp_path / "runs")
    lock = json.loads((video.parent.parent / "lock.json").read_text())
    assert lock["plugins"]["mini"] == {"distribution": "tetherflow", "version": "0.1.0"}


def test_command_is_installed(installed: Path) -> None:
    assert (installed / "bin" / "tetherflow").is_file()


def test_every_requirement_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert all(re.fullmatch(r"[a-z0-9.-]+", name) for name in pins)
    assert pins["torch"] == "2.13.0"
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras["test"], *extras["wan"], *extras["docs"], *extras["dev"]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


def test_torch_of_gpu_machines_is_allowed() -> None:
    (torch,) = [Requirement(text) for text in PROJECT["dependencies"] if text.startswith("torch>")]
    assert all(torch.specifier.contains(version) for version in ("2.11.0", "2.13.0", "2.14.0"))
