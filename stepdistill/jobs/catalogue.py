"""What methods there are: one entry per file of `stepdistill/methods/`."""

from typing import NamedTuple

from ..method import load
from ..resources import shipped_modules


class MethodEntry(NamedTuple):
    """A method as the table of methods shows it."""

    name: str
    paper: str
    data: str
    players: str


def catalogue() -> list[MethodEntry]:
    """Every shipped method, by name."""
    return [entry(name) for name in shipped_modules("methods")]


def entry(name: str) -> MethodEntry:
    method = load(name)
    needs = method().needs
    data = "yes" if needs.data else "no"
    players = needs.players + ("discriminator",) * (needs.discriminator == "teacher")
    return MethodEntry(name, method.paper, data, ", ".join(players))


def markdown() -> str:
    """The table of methods in the README."""
    lines = ["| method | paper | needs data | players |", "|---|---|---|---|"]
    lines += [f"| `{e.name}` | {e.paper} | {e.data} | {e.players} |" for e in catalogue()]
    return "\n".join(lines)
