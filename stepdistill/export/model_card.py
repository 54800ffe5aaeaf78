"""The model card of an exported student: how to call it, what it is, what it scored and cost."""

import json
import re
from html import escape
from pathlib import Path

from ..evaluation.report.table import in_markdown, score_names, value_text
from ..evaluation.rows import Row
from ..files import SMALL, regular
from ..resources import PACKAGE
from ..runs.config import guidance_of, text_of
from ..runs.costs import stage_costs
from ..runs.folder import versions, versions_line
from ..runs.stages import TrainedRun
from ..teachers.hub import hub_folder, is_id
from ..teachers.loading import absent
from ..teachers.lora_file import FILE, FOLDER
from .lora import KOHYA, has_lora_files


def card(trained: TrainedRun, code: list[str], rows: list[Row]) -> str:
    """README.md of the exported folder, with diffusers' front matter; code: its files of code."""
    run, teacher = trained.run, trained.teacher
    licence = run.network.license if run.network else licence_of(run.teacher.path)
    methods = ", ".join(stage.method for stage in run.stages[: trained.stage + 1])
    parts = [
        front_matter(licence, methods),
        f"# {in_markdown(run.name)}\n",
        f"Made with stepdistill {versions()['stepdistill']} by: {methods}.\n",
        usage(trained, code),
        "## What it is\n",
        facts(trained, licence),
        *classes(trained.setup.data.names),
        "## Scores\n",
        scores(rows),
        "## Settings\n",
        fenced(text_of(run)),
    ]
    if teacher.w != 1:
        parts.insert(4, f"Guidance {teacher.w:g} is part of the weights: call it without.\n")
    return "\n".join(parts)


def fenced(text: str) -> str:
    """A YAML text as Markdown, which nothing in it can end."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}yaml\n{text}{fence}\n"


def front_matter(licence: str, methods: str) -> str:
    quoted = licence if re.fullmatch(r"[\w.+-]+", licence) else json.dumps(licence)
    lines = ["library_name: diffusers", f"license: {quoted}", f"tags: [stepdistill, {methods}]"]
    return "\n".join(["---", *lines, "---\n"])


def usage(trained: TrainedRun, code: list[str]) -> str:
    """The plain call, and what it needs; code: the folder's files of code."""
    steps = trained.run.sampler.steps
    given = without(trained) + (", trust_remote_code=True" if code else "")
    call = f"num_inference_steps={steps[0] if steps else 32}"
    if trained.teacher.prompted:
        w = trained.teacher.called_at(trained.student.net)
        call = f'["{in_code(trained.teacher.asked(1)[0])}"], {call}, guidance_scale={w:g}'
        if trained.teacher.size != trained.teacher.backbone.size:
            call += ", height={}, width={}".format(*trained.teacher.size)
    else:
        call += ", class_labels=[3, 7]" if trained.teacher.classes else ", batch_size=2"
    text = (
        "```python\nfrom diffusers import DiffusionPipeline\n\n"
        f'pipe = DiffusionPipeline.from_pretrained("path/to/this/folder"{given})\n'
        f"images = pipe({call}).images\n```\n"
    )
    if code:
        text += (
            f"\n`trust_remote_code=True` is needed because {reason(code)}. No other code runs.\n"
        )
    if "pipeline.py" not in code and not trained.teacher.prompted:
        text += '\nIn bfloat16 add `output_type="pt"`: diffusers\' pixel pipelines have no other.\n'
    if trained.role is not None and has_lora_files(trained.teacher.pipeline):
        text += lora_usage(trained, code)
    offered = ", ".join(map(str, steps)) if steps else "any number"
    return text + f"\nSteps it was trained for: {offered}.\n"


def without(trained: TrainedRun) -> str:
    """What a call that opens the folder says of parts that are not there."""
    return "".join(f", {name}=None" for name in absent(trained.teacher.pipeline))


def lora_usage(trained: TrainedRun, code: list[str]) -> str:
    """How the student is put onto its base; code: the folder's files of code."""
    none = without(trained)
    if code:
        opened = f"DiffusionPipeline.from_pretrained(folder{none}, trust_remote_code=True)"
        scheduler = f"{opened}.scheduler"
    else:
        scheduler = 'DDIMScheduler.from_pretrained(folder, subfolder="scheduler")'
    kohya = f"`{FOLDER}/{KOHYA}` is the same under kohya's names, for other interfaces.\n"
    return (
        "\nThe same as a LoRA on the teacher, which the other weights here are merged with:\n\n"
        "```python\nfrom diffusers import DDIMScheduler, DiffusionPipeline\n\n"
        'folder = "path/to/this/folder"\n'
        f"pipe = DiffusionPipeline.from_pretrained({base_of(trained)}{none})\n"
        f'pipe.load_lora_weights(folder + "/{FOLDER}", weight_name="{FILE}")\n'
        f"pipe.scheduler = {scheduler}\n```\n\n"
    ) + (kohya if trained.teacher.backbone.network == "unet" else "")


def base_of(trained: TrainedRun) -> str:
    """How a call that opens the teacher names it."""
    path = trained.run.teacher.path if trained.run.teacher else ""
    repo, _, commit = path.partition("@")
    return f'"{repo}", revision="{commit}"' if is_id(path) else '"path/to/the/teacher"'


def in_code(prompt: str) -> str:
    """A prompt as it may stand in a string of Python, shortened."""
    return json.dumps(" ".join(prompt.split())[:60])[1:-1].replace("`", "'")


def reason(code: list[str]) -> str:
    """Why a folder has its files of code."""
    files = " and ".join(f"`{file}`" for file in code)
    if "pipeline.py" in code:
        return f"diffusers has no pipeline that calls such a network as it was trained; {files} can"
    return (
        "no scheduler of diffusers walks the trained times under its pipeline; "
        f"{files} reads them from the config beside it"
    )


def facts(trained: TrainedRun, licence: str) -> str:
    """What it was made of, and what it cost."""
    run, student = trained.run, trained.student
    reached = stage_costs(trained.setup)[: trained.stage + 1]
    updates = [*(cost.training.updates for cost in reached[:-1]), trained.update]
    samples = sum(n * cost.samples for n, cost in zip(updates, reached, strict=True))
    passes = reached[-1].passes
    lines = [
        f"teacher: {run.teacher or 'none, trained from data'} (licence: {licence})",
        f"process and prediction: {type(student.process).__name__}, {student.prediction}",
        f"guidance of the teacher: {guidance_of(run)} in u + w(c − u), 1 neutral",
        f"noise between steps: γ = {run.sampler.gamma:g} (0 none, 1 all)",
        f"cost: {trained.update} student updates in its last stage, "
        f"{samples * trained.setup.accelerator.num_processes} samples in all turns; "
        f"per update {passes.trained:g} trained, {passes.frozen:g} frozen and {passes.teacher:g} "
        "teacher passes",
        versions_line(),
    ]
    return "\n".join(f"- {in_markdown(line)}" for line in lines) + "\n"


def classes(names: tuple[str, ...]) -> list[str]:
    """What the labels are called, if the data say so."""
    written = [escape(name).replace("|", "&#124;") for name in names]
    lines = [f"| {label} | {name} |\n" for label, name in enumerate(written)]
    return ["## Classes\n", "| label | name |\n|---|---|\n" + "".join(lines)] if lines else []


def scores(rows: list[Row]) -> str:
    """A table of results, or a line saying there are none."""
    if not rows:
        return "Not evaluated.\n"
    names = score_names(rows)
    head = ["model", "steps", "NFE", *names]
    lines = [f"| {' | '.join(map(in_markdown, head))} |", "|---" * len(head) + "|"]
    for row in rows:
        texts = [value_text(row.scores.get(name)) for name in names]
        cells = [row.model, str(row.steps), str(row.nfe), *texts]
        lines.append(f"| {' | '.join(map(in_markdown, cells))} |")
    return "\n".join(lines) + "\n"


def licence_of(teacher: str) -> str:
    """The licence a teacher's model card states, or "unknown"."""
    lies = hub_folder(teacher) if is_id(teacher) else Path(teacher)
    cards = [folder / "README.md" for folder in (PACKAGE / "assets" / teacher, lies)]
    text = "\n".join(
        regular(file, SMALL).read_text(encoding="utf-8", errors="replace")
        for file in cards
        if file.is_file()
    )
    stated = re.search(r"^license: *(\S+)", text, re.MULTILINE)
    return stated[1] if stated else "unknown"
