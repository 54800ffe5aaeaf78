"""Following a document: its files are written, its commands and its Python executed."""

import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from uuid import uuid4

import typer
from rehearse import rehearse
from typer.testing import CliRunner

from stepdistill import cli
from stepdistill.runs import config

read = config.read


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of the fenced blocks of a Markdown text, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S)


def commands(content: str) -> list[list[str]]:
    """Arguments of the `stepdistill` command lines in a shell block, without their comments."""
    lines = [line.partition(" #")[0].removeprefix("$ ").split() for line in content.splitlines()]
    names = ("stepdistill", ".venv/bin/stepdistill")
    return [words[1:] for words in lines if words and words[0] in names]


class Reader:
    """Follows a document, in the folder it was made in: python and `real` commands are executed.

    real: the first two words of commands. runs: names of the runs that commands have made or would
    have made. done: numbers of what was executed, and of what was rehearsed.
    """

    def __init__(self, folder: Path, real: Collection[tuple[str, ...]] = ()) -> None:
        self.folder, self.runs, self.done = folder, set(), Counter()
        self.real = real
        self.namespace: dict[str, object] = {"__name__": "readme"}

    def follow(self, text: str) -> Counter:
        """Its blocks in order. One that opens with "# name.ext" is first written to that file."""
        for language, content in blocks(text):
            if file := re.match(r"# ([\w-]+\.\w+)$", content, re.M):
                (self.folder / file[1]).write_text(content)
            if language == "python":
                exec(compile(content, "README.md", "exec"), self.namespace)
                self.done["python"] += 1
            for words in commands(content) if language in ("sh", "bash", "console") else []:
                self.command(words)
        return self.done

    def command(self, words: list[str]) -> None:
        if words[0] == "run":
            self.runs.add(read(words[1], tuple(w for w in words[2:] if "=" in w)).name)
        real = tuple(words[:2]) in self.real
        if real:
            answer = CliRunner().invoke(cli.app, words)
            assert answer.exit_code == 0, f"stepdistill {' '.join(words)}: {answer.output}"
        else:
            self.rehearse(words)
        self.done["real" if real else "rehearsed"] += 1

    def rehearse(self, words: list[str]) -> None:
        """Read a command's arguments, and try out what they name."""
        command = typer.main.get_command(cli.app).commands[words[0]]
        given = command.make_context(words[0], words[1:]).params  # options of a wrong name or kind
        overrides = tuple(given.get("overrides") or ())
        for name in [given["config"]] if "config" in given else given.get("configs", ()):
            rehearse(read(name, overrides), self.folder / "rehearsal" / uuid4().hex)
        sources = [given[key] for key in ("source", "folder") if key in given]
        for source in [*sources, *given.get("sources", ())]:
            assert Path(source).name in self.runs, f"{source}: no command makes it"


def followed(text: str, name: str) -> str:
    """What a document has between the comments "name: …" and "end of name"."""
    (found,) = re.findall(rf"^<!-- {name}: .*?-->\n(.*?)^<!-- end of {name} -->", text, re.M | re.S)
    return found
