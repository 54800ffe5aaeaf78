"""Pipelines of the hub: by commit, fetched only when asked, and then without network or code."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from stand_in import COMMIT, served
from typer.testing import CliRunner

from stepdistill.cli import app
from stepdistill.export.model_card import base_of, licence_of
from stepdistill.resources import DOWNLOADS, PACKAGE
from stepdistill.runs.config import read
from stepdistill.teachers.folder import pipeline_folder
from stepdistill.teachers.hub import fetched, hub_folder, is_id, wanted
from stepdistill.teachers.loading import load_pipeline

REPO = "some/shapes"
ID = f"{REPO}@{COMMIT}"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """The shipped teacher of text, among files that are not to be fetched."""
    folder = tmp_path_factory.mktemp("hub") / "repository"
    shutil.copytree(PACKAGE / "assets/shapes", folder)
    (folder / "safety_checker").mkdir()
    for name in ("all.safetensors", "code.py", "unet/net.bin", "safety_checker/model.safetensors"):
        (folder / name).write_bytes(b"x")
    (folder / "unet/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"x")
    return folder


@pytest.fixture
def hub(repository, tmp_path, monkeypatch):
    """What is asked of a hub that has this repository; its cache is empty at first."""
    with served(REPO, repository) as (url, asked):
        files = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        fetched.cache_clear()
        yield asked
    fetched.cache_clear()


def sampled(*more: str) -> str:
    """The exit code of `sample`, and the last line that it says."""
    call = ["sample", *more, "out.png", "--steps", "1", "--prompt", "a red ring"]
    answer = CliRunner().invoke(app, call)
    return f"{answer.exit_code} {answer.output.strip().splitlines()[-1]}"


def test_a_pipeline_is_fetched_when_asked_and_then_lies_here(hub, repository):
    assert "allow downloads (--download)" in sampled(ID)
    assert not hub
    assert sampled(ID, "--download") == "0 images: out.png"
    first = Path("out.png").read_bytes()
    got = {path.partition("/resolve/")[2].partition("/")[2] for path in hub} - {""}
    there = {str(p.relative_to(repository)) for p in repository.rglob("*") if p.is_file()}
    assert there - got == {
        "all.safetensors",
        "code.py",
        "unet/net.bin",
        "safety_checker/model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
    }
    done = len(hub)
    assert sampled(ID) == "0 images: out.png"
    assert len(hub) == done and Path("out.png").read_bytes() == first
    assert not DOWNLOADS.allowed


def test_a_branch_is_told_as_the_commit_it_is_at(hub):
    for named in (REPO, f"{REPO}@main"):
        assert (
            sampled(named, "--download")
            == f"2 error: {named}: of the hub, a commit is needed: {ID}"
        )
    assert sampled(f"{REPO}@main").endswith(f"a commit is needed: {REPO}@COMMIT, 40 digits")


def test_what_the_hub_lacks_is_one_line(hub, repository, monkeypatch):
    assert sampled(f"no/such@{COMMIT}", "--download").startswith("2 error: no/such: of the hub: ")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert sampled(ID, "--download").startswith(f"2 error: {REPO}: of the hub: ")


def test_a_repository_without_an_index_is_no_pipeline(tmp_path, monkeypatch, hub):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/README.md").write_text("nothing")
    with served(REPO, tmp_path / "bare") as (url, _):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        assert sampled(ID, "--download").endswith("of the hub: no model_index.json, so no pipeline")


def test_its_card_is_read_and_its_commit_told(hub, monkeypatch):
    monkeypatch.setattr(DOWNLOADS, "allowed", True)
    assert licence_of(ID) == "apache-2.0"
    run = read("shapes-tdm-lora", (f"teacher={ID}",))
    told = base_of(SimpleNamespace(run=run))
    assert told == f'"{REPO}", revision="{COMMIT}"'
    assert load_pipeline(ID).unet.config.sample_size == 8


def test_a_variant_is_taken_where_it_is_alone():
    plain = [f"unet/net-0000{i}-of-00002.safetensors" for i in (1, 2)]
    half = [f"unet/net.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    others = ["model_index.json", "README.md", "unet/config.json", "unet/net.bin", "x.safetensors"]
    common = others[:3]
    assert wanted([*plain, *half, *others]) == [*common, *plain]
    assert wanted([*half, *others]) == [*common, *half]
    assert wanted(["vae/a.fp16.safetensors", "vae/a.safetensors"]) == ["vae/a.safetensors"]


def test_a_path_is_never_looked_for_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_id(ID) and not is_id(REPO) and not is_id("shapes") and not is_id("a/b/c")
    with pytest.raises(ValueError, match="neither a shipped teacher"):
        pipeline_folder(REPO)
    monkeypatch.setattr(DOWNLOADS, "allowed", True)
    assert is_id(REPO)
    Path(REPO).mkdir(parents=True)
    assert not is_id(REPO)
    with pytest.raises(ValueError, match="neither a shipped teacher"):
        pipeline_folder(REPO)


@pytest.mark.parametrize("revision", ["", "main", COMMIT[:7], COMMIT.upper()])
def test_only_a_commit_is_taken(revision):
    with pytest.raises(ValueError, match="a commit is needed"):
        hub_folder(f"{REPO}@{revision}")
