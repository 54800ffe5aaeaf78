"""What is installed is complete: wheel and sdist hold what they should, and work away from here."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
from collections.abc import Callable
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
# What stays in the repository.
STAYS = "eval/results/"
# What an sdist holds beside the folders.
LOOSE = {".gitignore", "CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
LARGEST = 20e6  # bytes of a wheel, and of an sdist


def tracked(folder: str) -> set[str]:
    """Files of a folder that git does not ignore and that travel, by their names in the tree."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", folder]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    there = {name for name in listed.splitlines() if (ROOT / name).exists()}
    return {name for name in there if not name.startswith(STAYS)}


def build(source: Path, out: Path, *arguments: str) -> Path:
    """The folder `out` with what was built from a tree, without the network."""
    command = [sys.executable, "-m", "hatchling", "build", *arguments, "-d", out]
    subprocess.run(command, cwd=source, check=True)
    return out


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of the tree."""
    return build(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return next(built.glob("stepdistill-*.whl"))


@pytest.fixture(scope="module")
def sdist(built: Path) -> Path:
    return next(built.glob("stepdistill-*.tar.gz"))


def test_the_wheel_holds_what_the_tree_ships(wheel: Path):
    inside = {name for name in ZipFile(wheel).namelist() if not name.startswith("stepdistill-")}
    shipped = {
        f"{place}{name.removeprefix(folder)}"
        for folder, place in PLACES.items()
        for name in tracked(folder)
    }
    for kind in ("/configs/", ".yaml", "/pipelines/", "/assets/", ".safetensors", "/eval/"):
        assert any(kind in name for name in shipped), f"nothing of {kind} to look for"
    assert inside == shipped


def test_the_sdist_holds_what_the_wheel_is_made_of(sdist: Path):
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert inside == set().union(LOOSE, *map(tracked, PLACES))


def test_results_stay_in_the_repository(wheel: Path, sdist: Path):
    assert any((ROOT / STAYS).iterdir()), "nothing to leave out"
    with tarfile.open(sdist) as archive:
        names = ZipFile(wheel).namelist() + archive.getnames()
    assert [name for name in names if STAYS in name] == []


def test_both_are_small(wheel: Path, sdist: Path, figure: Callable[..., None]):
    for kind, file in (("wheel", wheel), ("sdist", sdist)):
        size = file.stat().st_size
        figure(f"size of the {kind}", size / 1e6, "MB")
        assert size <= LARGEST, f"{file.name}: {size} bytes"


def test_the_sdist_makes_the_same_wheel(wheel: Path, sdist: Path, tmp_path: Path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    tree = tmp_path / sdist.name.removesuffix(".tar.gz")
    again = next(build(tree, tmp_path / "dist", "-t", "wheel").glob("*.whl"))
    assert again.name == wheel.name
    assert again.read_bytes() == wheel.read_bytes()


def fresh(home: Path, distribution: Path) -> Path:
    """The programs of a new environment with a wheel or sdist, which has never seen the checkout.

    The dependencies come from the present environment by path; its own editable stepdistill does
    not, since `.pth` files count only in an environment's own site-packages.
    """
    venv.create(home, symlinks=True)
    programs, python = home / "bin", home / "bin" / "python"
    site = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = subprocess.run(site, capture_output=True, text=True, check=True).stdout.strip()
    Path(own, "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index"]
    alone = ["--no-deps", "--no-build-isolation", "--ignore-installed"]
    subprocess.run([*pip, *alone, distribution], check=True)
    return programs


def call(work: Path, *command: str | Path) -> str:
    """What a command prints that runs in the folder `work`, with nothing of this process's path."""
    work.mkdir(exist_ok=True)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(command, cwd=work, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_sdist_installs_and_plans(sdist: Path, tmp_path: Path):
    programs, work = fresh(tmp_path / "environment", sdist), tmp_path / "elsewhere"
    assert "Consistency models" in call(work, programs / "stepdistill", "methods")
    planned = call(work, programs / "python", "-m", "stepdistill", "plan", CONFIG)
    assert "passes per update" in planned
    assert list(work.iterdir()) == []


@pytest.mark.full
def test_the_installed_wheel_runs_a_shipped_config(wheel: Path, tmp_path: Path):
    """Train, export, evaluate and report."""
    home, work = tmp_path / "environment", tmp_path / "elsewhere"
    programs = fresh(home, wheel)
    where = call(work, programs / "python", "-c", "import stepdistill as s; print(s.__file__)")
    assert Path(where.strip()).is_relative_to(home)

    call(work, programs / "stepdistill", "run", CONFIG)
    for made in ("results.json", "report.html", "student/model_index.json"):
        assert (work / "runs" / CONFIG / made).stat().st_size > 0, made
