"""Bad inputs without end: shipped configs, teachers, images and runs, each damaged in one place.

A case is made from its number alone. It prepares files in an empty folder, where the command line
is then called; the error must mention one of the words by which the damaged place is known.
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from stepdistill.resources import PACKAGE, shipped, shipped_names
from stepdistill.runs.yaml import load_values, written

STATE = ("state.safetensors", "state.json")
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
JUNK = ["naïve ☃", "\u202ertl", "💥" * 40, "[/bold] :boom: {x}", "a\tb\x1b[31m", " "]


Words = tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """arguments: of the command line. prepare: fills the folder, returns words for the fault."""

    name: str
    arguments: Words
    prepare: Callable[[Path], Words]


@dataclass(frozen=True)
class Stock:
    """A finished run's folder, and an exported pipeline, that cases copy and damage."""

    run: Path
    exported: Path


Family = Callable[[random.Random, Stock], Case]


def case(number: int, stock: Stock, families: tuple[Family, ...] | None = None) -> Case:
    """Case `number`, the same on every machine."""
    rng = random.Random(f"fuzz {number}")
    families = families or FAMILIES
    return families[number % len(families)](rng, stock)


def without_files(name: str, arguments: Words, word: str) -> Case:
    """A case whose fault lies in its arguments."""
    return Case(name, arguments, lambda folder: (word,))


def job(rng: random.Random) -> str:
    """A command that takes a config."""
    return rng.choice(["run", "train", "plan"])


def places(values: Any, path: tuple = ()) -> list[tuple]:
    """The path of every key below, outermost first."""
    inner = values.items() if isinstance(values, dict) else enumerate(values)
    found = []
    for key, value in inner:
        found.append((*path, key))
        found += places(value, (*path, key)) if isinstance(value, dict | list) else []
    return found


def at(values: Any, path: tuple) -> Any:
    for key in path:
        values = values[key]
    return values


def shipped_config(rng: random.Random) -> tuple[str, dict]:
    """A shipped config's name and values."""
    name = rng.choice(shipped_names("configs", ".yaml"))
    return name, load_values(shipped("configs") / f"{name}.yaml")


def named_by(path: tuple) -> Words:
    """What an error about a key may call it: other packages' settings are named by their group."""
    last = [str(key) for key in path if isinstance(key, str)][-1]
    return (last, f"network.{path[1]}") if path[0] == "network" and len(path) > 2 else (last,)


def of_values(name: str, values: dict, rng: random.Random, words: Words) -> Case:
    """A case whose config file holds `values`."""

    def prepare(folder: Path) -> Words:
        (folder / "fuzzed.yaml").write_text(written(values))
        return words

    return Case(name, (job(rng), "fuzzed.yaml"), prepare)


def misspelt(rng: random.Random, stock: Stock) -> Case:
    """A key loses, gains or exchanges a letter."""
    name, values = shipped_config(rng)
    path = rng.choice([p for p in places(values) if isinstance(p[-1], str)])
    old, place, i = path[-1], at(values, path[:-1]), rng.randrange(len(path[-1]))
    new = rng.choice([old[:i] + old[i + 1 :], old[:i] + "q" + old[i:], old.upper(), old + " "])
    new = new if new and new != old else old + "_"
    place[new] = place.pop(old)
    return of_values(f"misspelt {name} {path} {new}", values, rng, (new, *named_by(path)[1:]))


def retyped(rng: random.Random, stock: Stock) -> Case:
    """A value becomes one of another type."""
    name, values = shipped_config(rng)
    path = rng.choice(places(values))
    old = at(values, path)
    others = [5, "text", [], [[1]], {"a": 1}, {}, None, True, float("nan"), 1.5]
    same = (int, float) if type(old) in (int, float) else (type(old),)
    new = rng.choice([other for other in others if not isinstance(other, same)])
    at(values, path[:-1])[path[-1]] = new
    return of_values(f"retyped {name} {path} {new}", values, rng, named_by(path))


def scaled(rng: random.Random, stock: Stock) -> Case:
    """A number becomes enormous, negative, zero or no number."""
    name, values = shipped_config(rng)
    numbers = [p for p in places(values) if type(at(values, p)) in (int, float)]
    path = rng.choice(numbers)
    old = at(values, path)
    new = rng.choice([-old - 1, -1, old + 10**12, 10**30, float("inf"), float("nan"), -1e300])
    at(values, path[:-1])[path[-1]] = new
    return of_values(f"scaled {name} {path} {new}", values, rng, named_by(path))


def junk(rng: random.Random, stock: Stock) -> Case:
    """An odd text as a value, or as a key with something below it."""
    name, values = shipped_config(rng)
    text = rng.choice(JUNK)
    path = rng.choice([p for p in places(values) if isinstance(p[-1], str)])
    if rng.random() < 0.5:
        at(values, path[:-1])[path[-1]] = text
        return of_values(f"junk value {name} {path}", values, rng, named_by(path))
    at(values, path[:-1])[text] = rng.choice([1, {"a": {"b": [1, {}]}}, [text], None])
    named = (repr(text)[1:4], *named_by(path)[1:])
    return of_values(f"junk key {name} {path}", values, rng, named)


def missing(rng: random.Random, stock: Stock) -> Case:
    """What every run needs is left out, or what excludes each other is there."""
    name, values = shipped_config(rng)
    source = "teacher" if "teacher" in values else "network"
    options = {
        "no source": ({source: None}, "teacher, network"),
        "two sources": ({"teacher": "digits", "network": {"unet": {}}}, "teacher, network"),
        "no stages": ({"stages": []}, "stages"),
        "no steps": ({"evaluation": {"steps": []}}, "evaluation.steps"),
        "no path": ({"data": {"source": "folder"}}, "data.settings.path"),
        "twice": ({"evaluation": {"teacher_steps": [1, 1]}}, "evaluation.teacher_steps"),
        "name": ({"name": rng.choice(["..", "a/b", "-x", "", "x" * 500])}, "name"),
        "not offered": (
            {"sampler": {"steps": [1, 2]}, "evaluation": {"steps": [7]}},
            "evaluation.steps",
        ),
    }
    kind = rng.choice(sorted(options))
    changed, word = options[kind]
    return of_values(f"{kind} {name}", values | changed, rng, (word,))


def broken_text(rng: random.Random, stock: Stock) -> Case:
    """The file itself: cut, doubled, tabbed, binary, empty, of the wrong kind."""
    name, _ = shipped_config(rng)
    lines = (shipped("configs") / f"{name}.yaml").read_text().splitlines(keepends=True)
    i = rng.choice([i for i, line in enumerate(lines) if line[0].isalpha()])
    text = "".join(lines)
    content = {
        "doubled key": "".join([*lines, "name: again\n"]),
        "tab": "".join([*lines[:i], "\t" + lines[i], *lines[i:]]),
        "open bracket": text.replace("name: ", "name: [", 1),
        "open quote": text + "license: 'x\n",
        "two documents": text + "---\n" + text,
        "unknown tag": text + "data: !!python/name:os.system\n",
        "unknown alias": text + "data: *nothing\n",
        "endless": "name: &x [*x]\n",
        "deep": "name: " + "[" * 3000,
        "deeper": "name: " + "[" * 50_000,
        "reference to nothing": text + "precision: ${nothing}\n",
        "multiplying": text + "trackers: [" + "'${stages}'," * 50 + "]\n",
        "empty": rng.choice(["", "# only a comment\n", "---\n", "null\n"]),
        "list": "- " + text.replace("\n", "\n  "),
        "binary": text[:40] + "\x00\x01\x02",
        "latin": text + "license: caf\udce9\n",
        "control": text + "license: \x1b[31mred\n",
    }
    kind = rng.choice(sorted(content))

    def prepare(folder: Path) -> Words:
        (folder / "fuzzed.yaml").write_bytes(content[kind].encode("utf-8", "surrogateescape"))
        return ("fuzzed.yaml",)

    return Case(f"text {kind} {name}", (job(rng), "fuzzed.yaml"), prepare)


def overridden(rng: random.Random, stock: Stock) -> Case:
    """Assignments on the command line that lead nowhere, or to the wrong thing."""
    name = rng.choice(shipped_names("configs", ".yaml"))
    key, word = rng.choice(
        [
            ("seed", "seed"),
            ("=5", "=5"),
            ("seed..x=1", "seed..x"),
            ("stages.7.method=x", "stages.7"),
            ("stages.-9.method=diffusion", "stages.-9"),
            ("stages.first.method=diffusion", "stages.first"),
            ("stages.0.method.x=1", "stages.0.method"),
            ("seed=[1", "seed"),
            ("name=${sead}", "name"),
            ("guidance=${guidance}", "guidance"),
            ("seed=???", "seed"),
            ("seed='1'", "seed"),
            ("seed=1e3", "seed"),
            ("guidance=many", "guidance"),
            ("guidance=-1", "guidance"),
            ("precision=fp61", "precision"),
            ("precision=no", "precision"),
            ("sampler.grid.name=unifrm", "unifrm"),
            ("sampler.grid.rho=0", "sampler.grid.rho"),
            ("sampler.steps=3", "sampler.steps"),
            ("evaluation.suite=fid", "evaluation.suite"),
            ("evaluation.n=19", "evaluation.n"),
            ("stages.0.training.upates=3", "stages.0.training.upates"),
            ("stages.0.training.optimiser.lr=0", "stages.0.training.optimiser.lr"),
            ("stages.0.training.optimiser.betas=[0.9]", "betas"),
            ("stages.0.training.ema=1", "stages.0.training.ema"),
            ("stages.0.method=consitency", "consitency"),
            ("stages.0.method=os", "stages.0.method"),
            ("stages.0.settings.nothing=1", "stages.0.settings.nothing"),
            ("trackers=[tensorbord]", "tensorbord"),
            ("teacher=digts", "te"),
            ("data.source=digit", "data.source"),
            ("adaptors.rank=4", "adaptors"),
        ]
    )
    return without_files(f"override {name} {key}", (job(rng), name, key), word)


def wrong_base(rng: random.Random, stock: Stock) -> Case:
    """A base that lacks what the run needs."""
    name, key, word = rng.choice(
        [
            ("digits-consistency-vp", "guidance=2", "guidance"),
            ("digits-consistency-vp", "data.dropout=0.1", "data.dropout: the network takes no"),
            ("digits-consistency-vp", "sampler.grid.name=karras", "sampler"),
            ("digits-consistency-vp", "sampler.steps=[1,2,3,4]", "sampler"),
            ("demo", "sampler.steps=[1,2,3,4]", "sampler"),
            ("smoke", "sampler.grid.name=trailing", "sampler"),
            ("digits-teacher", "guidance=3", "guidance"),
            ("digits-teacher", "stages.0.method=consistency", "stages.0.method"),
            ("digits-teacher", "network.unet.num_class_embeds=5", "classes"),
            ("digits-teacher", "network.unet.sample_size=16", "(1, 16, 16)"),
            ("digits-teacher", "network.unet.in_channels=3", "out_channels 1: needs 3"),
            ("digits-teacher", "network.unet.norm_num_groups=7", "network.unet"),
            ("digits-teacher", "network.unet.down_block_types=[DownBlock2D]", "network.unet"),
            ("digits-teacher", "network.scheduler=PNDMSchedule", "PNDMSchedule"),
            ("digits-teacher-vp", "data.dropout=0.5", "data.dropout"),
            ("digits-teacher-vp", "network.scheduler_config.prediction_type=x", "prediction_type"),
            ("digits-teacher-vp", "network.scheduler_config.beta_schedule=x", "scheduler_config"),
            ("digits-teacher-vp", "network.scheduler_config.rescale_betas_zero_snr=true", "eps"),
            ("digits-teacher-vp", "network.scheduler_config.num_train_timesteps=0", "timesteps"),
        ]
    )
    return without_files(f"base {name} {key}", (job(rng), name, key), word)


def changed_json(file: Path, **changes: Any) -> None:
    """Write entries into a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def changed_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Rewrite a pipeline's weights."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def cut(file: Path, share: float) -> None:
    """Keep the first part of a file."""
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


def pickled(folder: Path) -> None:
    """Weights as torch.save writes them, instead of safetensors."""
    torch.save(load_file(folder / WEIGHTS), folder / "unet" / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def spoil_pipeline(rng: random.Random, folder: Path) -> str:
    """Damage a pipeline folder in one place; what it is called."""
    first = sorted(load_file(folder / WEIGHTS))[0]
    index, net = folder / "model_index.json", folder / "unet" / "config.json"
    scheduler = folder / "scheduler" / "scheduler_config.json"
    damage: dict[str, tuple[Callable[[], Any], str]] = {
        "no index": (index.unlink, "model_index.json"),
        "cut index": (lambda: cut(index, 0.6), "model_index.json"),
        "index of a list": (lambda: index.write_text("[1]"), "model_index.json"),
        "no network declared": (lambda: changed_json(index, unet=None), "model_index.json"),
        "a foreign network": (lambda: changed_json(index, unet=["os", "system"]), "model_index"),
        "a foreign scheduler": (lambda: changed_json(index, scheduler=["x", "Nope"]), "Nope"),
        "no pipeline": (lambda: changed_json(index, _class_name="Nope"), "Nope"),
        "no network": (lambda: shutil.rmtree(folder / "unet"), "unet"),
        "no scheduler": (lambda: shutil.rmtree(folder / "scheduler"), "scheduler"),
        "no weights": (lambda: (folder / WEIGHTS).unlink(), "unet"),
        "cut weights": (lambda: cut(folder / WEIGHTS, rng.random()), WEIGHTS),
        "junk weights": (lambda: (folder / WEIGHTS).write_bytes(rng.randbytes(999)), WEIGHTS),
        "pickled weights": (lambda: pickled(folder), ".bin"),
        "a lost tensor": (lambda: changed_weights(folder, lambda t: t.pop(first)), first),
        "a renamed tensor": (
            lambda: changed_weights(folder, lambda t: t.update(odd=t.pop(first))),
            first,
        ),
        "a misshapen tensor": (
            lambda: changed_weights(folder, lambda t: t.update({first: torch.zeros(2)})),
            first,
        ),
        "a tensor of nan": (
            lambda: changed_weights(folder, lambda t: t[first].fill_(float("nan"))),
            first,
        ),
        "cut network config": (lambda: cut(net, 0.5), "unet/config.json"),
        "network config of nothing": (lambda: net.write_text("null"), "unet/config.json"),
        "other channels": (lambda: changed_json(net, in_channels=3), "unet"),
        "other groups": (lambda: changed_json(net, norm_num_groups=5), "unet"),
        "blocks of text": (lambda: changed_json(net, block_out_channels="x"), "unet"),
        "no size": (lambda: changed_json(net, sample_size=None), "sample_size"),
        "large size": (lambda: changed_json(net, sample_size=32), "32"),
        "cut scheduler": (lambda: cut(scheduler, 0.5), "scheduler_config.json"),
        "empty scheduler": (lambda: scheduler.write_text("{}"), "scheduler_config.json"),
        "no timesteps": (lambda: changed_json(scheduler, num_train_timesteps=0), "timesteps"),
        "many timesteps": (lambda: changed_json(scheduler, num_train_timesteps=1e99), "timesteps"),
    }
    kind = rng.choice(sorted(damage))
    act, word = damage[kind]
    act()
    return word


def bad_teacher(rng: random.Random, stock: Stock) -> Case:
    """A damaged teacher folder, as a teacher or as a student to sample and score."""
    name = rng.choice(["digits", "digits-vp"])
    seed = rng.random()

    def prepare(folder: Path) -> Words:
        copy = folder / "teacher-folder"
        shutil.copytree(PACKAGE / "assets" / name, copy)
        return (spoil_pipeline(random.Random(seed), copy),)

    arguments = rng.choice(
        [
            (job(rng), "smoke", "teacher=teacher-folder"),
            ("sample", "teacher-folder", "out.png"),
            ("eval", "teacher-folder", "--n", "20", "--blocks", "2"),
        ]
    )
    return Case(f"teacher {name} {seed}", arguments, prepare)


def bad_export(rng: random.Random, stock: Stock) -> Case:
    """A damaged exported student."""
    seed = rng.random()
    faulty = [5, {}, {"1": []}, {"1": [1.0, 0.5]}, {"x": [1]}, {"2": [0, 1]}, {"1": ["a"]}]
    times = rng.choice(faulty)
    spoil = rng.random() < 0.5

    def prepare(folder: Path) -> Words:
        copy = folder / "student-folder"
        shutil.copytree(stock.exported, copy)
        if spoil:
            return (spoil_pipeline(random.Random(seed), copy),)
        changed_json(copy / "model_index.json", times=times)
        return ("times",)

    arguments = rng.choice(
        [
            (job(rng), "smoke", "teacher=student-folder"),
            ("sample", "student-folder", "out.png"),
            ("eval", "student-folder", "--n", "20", "--blocks", "2"),
        ]
    )
    return Case(f"export {seed} {'' if spoil else times}", arguments, prepare)


def picture(file: Path, shape: tuple[int, ...] = (8, 8), form: str | None = None) -> None:
    """A random image; shape (h, w) or (h, w, channels)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    Image.fromarray(pixels).save(file, form)


def spoil_images(rng: random.Random, folder: Path, labelled: bool) -> str:
    """Damage a folder of images in one place; what it is called."""
    group = folder / "3" if labelled else folder
    file = group / "1.png"
    damage: dict[str, tuple[Callable[[], Any], str]] = {
        "gone": (lambda: shutil.rmtree(folder), "pictures"),
        "empty": (lambda: [shutil.rmtree(folder), folder.mkdir()], "pictures"),
        "a file": (lambda: [shutil.rmtree(folder), folder.write_text("x")], "pictures"),
        "cut": (lambda: cut(file, 0.6), "1.png"),
        "no bytes": (lambda: cut(file, 0), "1.png"),
        "text": (lambda: file.write_text("no picture"), "1.png"),
        "larger": (lambda: picture(file, (9, 8)), "1.png: 8×9"),
        "colours": (lambda: picture(file, (8, 8, 3)), "1.png"),
        "transparent": (lambda: picture(file, (8, 8, 4)), "1.png"),
        "gif": (lambda: picture(file, form="GIF"), "1.png"),
        "notes": (lambda: (group / "notes.txt").write_text("x"), "notes.txt"),
        "table": (lambda: (group / "labels.csv").write_text("x"), "labels.csv"),
        "dangling": (lambda: (group / "2.png").symlink_to("nowhere"), "2.png"),
    }
    if labelled:
        damage |= {
            "a class more": (lambda: picture(folder / "x" / "1.png"), "11 subfolders"),
            "a class less": (lambda: shutil.rmtree(group), "9 subfolders"),
            "an empty class": (lambda: [shutil.rmtree(group), group.mkdir()], "3"),
            "loose": (lambda: picture(folder / "loose.png"), "loose.png"),
        }
    kind = rng.choice(sorted(damage))
    act, word = damage[kind]
    act()
    return word


def bad_images(rng: random.Random, stock: Stock) -> Case:
    """A folder of images with one fault."""
    labelled, seed = rng.random() < 0.6, rng.random()

    def prepare(folder: Path) -> Words:
        for label in range(10):
            for i in range(2):
                picture(folder / "pictures" / (f"{label}/{i}.png" if labelled else f"{i}.png"))
        return (spoil_images(random.Random(seed), folder / "pictures", labelled),)

    name = "smoke" if labelled else "digits-consistency-vp"
    arguments = (job(rng), name, "data={source: folder, settings: {path: pictures}}")
    return Case(f"images {seed} {labelled}", arguments, prepare)


def spoil_run(rng: random.Random, folder: Path) -> str:
    """Damage a run's folder in one place that every command reads; what it is called."""
    config, checkpoint = folder / "config.yaml", sorted((folder / "checkpoints").iterdir())[-1]
    tensors, numbers = checkpoint / "state.safetensors", checkpoint / "state.json"
    text = config.read_text()

    def edit(old: str, new: str) -> Callable[[], Any]:
        return lambda: config.write_text(text.replace(old, new, 1))

    damage: dict[str, tuple[Callable[[], Any], str]] = {
        "no config": (config.unlink, "config.yaml"),
        "empty config": (lambda: cut(config, 0), "config.yaml"),
        "binary config": (lambda: config.write_bytes(rng.randbytes(200)), "config.yaml"),
        "unknown key": (edit("seed:", "sead:"), "sead"),
        "unknown method": (edit("method: consistency", "method: nope"), "nope"),
        "unknown teacher": (edit("teacher: digits", "teacher: nope"), "nope"),
        "other network": (edit("teacher: digits", "teacher: digits-vp"), "checkpoint"),
        "longer": (edit("updates: 5", "updates: 50"), "not finished"),
        "cut checkpoint": (lambda: cut(tensors, 0.7), "state.safetensors"),
        "altered checkpoint": (
            lambda: tensors.write_bytes(tensors.read_bytes()[:-1] + b"x"),
            "state.safetensors",
        ),
        "no tensors": (tensors.unlink, "state.safetensors"),
        "no numbers": (numbers.unlink, "state.json"),
        "cut numbers": (lambda: cut(numbers, 0.5), checkpoint.name),
        "other numbers": (lambda: changed_json(numbers, stage=9), "checkpoint"),
        "no checkpoints": (lambda: shutil.rmtree(folder / "checkpoints"), "not finished"),
        "unfinished": (lambda: shutil.rmtree(checkpoint), "not finished"),
    }
    kind = rng.choice(sorted(damage))
    act, word = damage[kind]
    act()
    return word


def bad_run(rng: random.Random, stock: Stock) -> Case:
    """A damaged run's folder."""
    seed = rng.random()

    def prepare(folder: Path) -> Words:
        shutil.copytree(stock.run, folder / "runs" / "smoke")
        return (spoil_run(random.Random(seed), folder / "runs" / "smoke"),)

    arguments = rng.choice(
        [
            ("sample", "runs/smoke", "out.png"),
            ("export", "runs/smoke", "out"),
            ("eval", "runs/smoke", "--n", "20", "--blocks", "2"),
        ]
    )
    return Case(f"run {seed}", arguments, prepare)


def bad_rest(rng: random.Random, stock: Stock) -> Case:
    """A run's folder that cannot be continued."""
    seed = rng.random()

    def prepare(folder: Path) -> Words:
        run = folder / "runs" / "smoke"
        shutil.copytree(stock.run, run)
        damage = random.Random(seed)
        checkpoint = sorted((run / "checkpoints").iterdir())[-1]
        damage.choice(
            [
                lambda: (run / "config.yaml").unlink(),
                lambda: cut(run / "config.yaml", 0.5),
                lambda: cut(checkpoint / "state.safetensors", 0.5),
                lambda: cut(checkpoint / "state.json", 0.5),
                lambda: (run / "costs.json").write_text("{}"),
                lambda: [
                    (run / "costs.json").write_text(damage.choice(["", "[]", '{"seconds": 1}'])),
                    (run / "results.json").write_text('{"rows": [], "floor": []}'),
                ],
            ]
        )()
        return ("runs/smoke",)

    return Case(f"rest {seed}", ("run", "smoke"), prepare)


EVIL = "from pathlib import Path\nPath('PWNED').touch()\n"
MODULES = ("runs.smoke.evil", "evil", "runs", "this", "os.path")


def received_run(rng: random.Random, stock: Stock) -> Case:
    """A run's folder that names code, or holds what is no file, or what no run has written."""
    module, kind = rng.choice(MODULES), rng.randrange(3)
    file = rng.choice(["config.yaml", "checkpoints/000005/SHA256SUMS", "checkpoints/000005"])
    key = rng.choice(["method: consistency", "source: digits", "backbone: null", "codec: null"])
    special = rng.choice(["pipe", "/dev/zero", "/dev/urandom", "nowhere"])
    state = rng.choice(["[" * 99_999, "[]", '{"score": 1, "numbers": {"stage": "x"}}', "{"])

    def prepare(folder: Path) -> Words:
        run = folder / "runs" / "smoke"
        shutil.copytree(stock.run, run)
        for place in (folder, folder / "runs", run):
            (place / "evil.py").write_text(EVIL)
            (place / "__init__.py").write_text(EVIL)
        if kind == 0:
            text = (run / "config.yaml").read_text()
            (run / "config.yaml").write_text(text.replace(key, f"{key.split(':')[0]}: {module}"))
            return (module,)
        if kind == 1:
            shutil.move(run / file, folder / "kept")
            if special == "pipe":
                os.mkfifo(run / file)
            else:
                (run / file).symlink_to(special)
            return ("runs/smoke",)
        checkpoint = run / "checkpoints" / "000005"
        (checkpoint / "state.json").write_text(state)
        sums = [sha256((checkpoint / n).read_bytes()).hexdigest() + f"  {n}\n" for n in STATE]
        (checkpoint / "SHA256SUMS").write_text("".join(sums))
        return ("runs/smoke",)

    arguments = rng.choice(
        [
            ("sample", "runs/smoke", "out.png"),
            ("export", "runs/smoke", "out"),
            ("eval", "runs/smoke", "--n", "20", "--blocks", "2"),
        ]
    )
    return Case(f"received {kind} {module} {key} {file} {special}", arguments, prepare)


def no_such_thing(rng: random.Random, stock: Stock) -> Case:
    """Names of nothing, and of the wrong thing; places where nothing can be written."""
    arguments, word = rng.choice(
        [
            (("run", "nothing"), "nothing"),
            (("run", "dmeo"), "'demo'"),
            (("train", "a-folder"), "a-folder"),
            (("plan", "x" * 400), "xxx"),
            (("run", "a-file"), "a-file"),
            (("run", "smoke", "name=demo"), "demo"),
            (("train", "demo"), "demo"),
            (("train", "smoke", "seed=7"), "smoke"),
            (("run", "smoke", "--runs", "a-file"), "a-file"),
            (("train", "smoke", "--runs", "a-file/below"), "a-file"),
            (("run", "smoke", "--runs", "/proc/none/such"), "/proc"),
            (("train", "smoke", "name=a-folder", "--runs", "."), "a-folder"),
            (("sample", "nothing", "a.png"), "nothing"),
            (("sample", "a-folder", "a.png"), "a-folder"),
            (("sample", "runs/smoke", "a.jpg"), "a.jpg"),
            (("sample", "runs/smoke", "a-file/a.png"), "a-file"),
            (("sample", "runs/smoke", "a-folder.png"), "a-folder.png"),
            (("sample", "runs/smoke", "y" * 300 + "/a.png"), "yyy"),
            (("sample", "runs/smoke", "a.png", "--steps", "3"), "3"),
            (("sample", "runs/smoke", "a.png", "--steps", "-1"), "steps"),
            (("sample", "runs/smoke", "a.png", "--count", "none"), "count"),
            (("export", "nothing", "out"), "nothing"),
            (("export", "a-folder", "out"), "a-folder"),
            (("export", "runs/smoke", "a-file"), "a-file"),
            (("export", "runs/smoke", "a-folder"), "a-folder"),
            (("export", "runs/smoke", "a-file/out"), "a-file"),
            (("export", "runs/smoke"), "out"),
            (("eval", "nothing"), "nothing"),
            (("eval", "runs/smoke", "a-folder"), "a-folder"),
            (("eval", "runs/smoke", "--suite", "fid"), "fid"),
            (("eval", "runs/smoke", "--n", "3"), "n"),
            (("eval", "runs/smoke", "--out", "a-file"), "a-file"),
            (("evaluate", "runs/smoke"), "evaluate"),
        ]
    )

    def prepare(folder: Path) -> Words:
        (folder / "a-file").write_text("x")
        (folder / "a-folder.png").mkdir()
        (folder / "a-folder").mkdir()
        (folder / "a-folder" / "something").write_text("x")
        shutil.copytree(stock.run, folder / "runs" / "smoke")
        (folder / "runs" / "demo").write_text("in the way")
        return (word,)

    return Case(f"nothing {' '.join(arguments)[:60]}", arguments, prepare)


FAMILIES = (
    misspelt,
    retyped,
    scaled,
    bad_teacher,
    overridden,
    bad_images,
    junk,
    bad_run,
    bad_rest,
    broken_text,
    wrong_base,
    bad_export,
    missing,
    no_such_thing,
)
# Of folders from somebody else.
FOLDERS = (received_run, bad_teacher, bad_run, bad_export, bad_images, bad_rest)
