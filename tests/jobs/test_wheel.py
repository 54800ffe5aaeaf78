"""The wheel is complete: it holds all that the tree ships, and works away from the tree."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A shipped configuration that trains, exports and evaluates in a minute.
CONFIG = "smoke"
# What must travel: folder of the tree → its place in the wheel.
PLACES = {
    "stepdistill": "stepdistill",
    "configs": "stepdistill/configs",
    "pipelines": "stepdistill/pipelines",
    "eval": "stepdistill/eval",
}


def tracked(folder: str) -> set[str]:
    """Files of a folder that git does not ignore, relative to it."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", folder]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    there = [ROOT / name for name in listed.splitlines() if (ROOT / name).exists()]
    return {path.relative_to(ROOT / folder).as_posix() for path in there}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the tree without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--no-build-isolation", "-w", folder, ROOT], check=True)
    return next(folder.glob("stepdistill-*.whl"))


def test_the_wheel_holds_what_the_tree_ships(wheel: Path):
    inside = {name for name in ZipFile(wheel).namelist() if not name.startswith("stepdistill-")}
    shipped = {f"{PLACES[folder]}/{name}" for folder in PLACES for name in tracked(folder)}
    for kind in ("/configs/", ".yaml", "/pipelines/", "/assets/", ".safetensors", "/eval/"):
        assert any(kind in name for name in shipped), f"nothing of {kind} to look for"
    assert inside == shipped


@pytest.mark.full
def test_the_installed_wheel_runs_a_shipped_config(wheel: Path, tmp_path: Path):
    """Train, export, evaluate and report from an environment that has never seen the checkout.

    The dependencies come from the present environment by path; its own editable stepdistill does
    not, since `.pth` files count only in an environment's own site-packages.
    """
    home = tmp_path / "environment"
    venv.create(home, with_pip=True, symlinks=True)
    python = home / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True)
    site = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = subprocess.run(site, capture_output=True, text=True, check=True).stdout.strip()
    Path(own, "dependencies.pth").write_text(sysconfig.get_path("purelib"))

    work = tmp_path / "elsewhere"
    work.mkdir()
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    where = [python, "-c", "import stepdistill; print(stepdistill.__file__)"]
    found = subprocess.run(where, cwd=work, env=clean, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).is_relative_to(home)

    command = [home / "bin" / "stepdistill", "run", CONFIG]
    done = subprocess.run(command, cwd=work, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for made in ("results.json", "report.html", "student/model_index.json"):
        assert (work / "runs" / CONFIG / made).stat().st_size > 0, made
