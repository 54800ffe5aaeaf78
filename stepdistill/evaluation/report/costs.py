"""The table of what an image costs: its columns, and what a reader must know of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.ticker import EngFormatter

from ..costs import ENOUGH, ByPart, Cost
from ..rows import Row
from .table import Column, Table, amount, steps_and_source, telling

NOTES = (
    "`latency` is the time from the call for one image until it is made, {devices}: the median "
    f"(p50), which is `ms / image`, too, and of at least {ENOUGH} calls the 95th percentile (p95); "
    "the calls before, which warm up, are left out.",
    "`images / s` is the best throughput of the few batches that there was time for; small print "
    "names the batch.",
    "`MACs` are multiply-accumulates of the matrix products, convolutions and attentions of such a "
    "call, half of the FLOPs that torch counts: of the network alone, and with VAE, text encoder "
    "and all else.",
)
MEMORY = (
    "`peak memory` is what a model's weights take on the device, and the most that torch allocates "
    "besides in a call for one image."
)
NAMES = {"macs": "MACs", "memory": "peak memory"}
engineering = EngFormatter(places=1)  # 3.2 G


def cost_tables(rows: Sequence[Row]) -> list[Table]:
    """The table of what was measured; none where nothing was."""
    columns = [
        Column("model", lambda row: row.model, steps_and_source),
        Column("NFE", lambda row: str(row.nfe) if row.nfe else "–"),
        column("latency p50, ms", lambda c: amount(c.latency, 1e3), lambda c: f"{c.runs} calls"),
        column("p95, ms", lambda c: amount(c.p95, 1e3)),
        column("images / s", lambda c: amount(c.throughput), lambda c: f"batch {c.batch}"),
        column("peak memory, MiB", lambda c: amount(c.memory, 2**-20)),
        column("MACs, network", lambda c: part(c.macs, "network", engineering)),
        column("MACs, all", lambda c: part(c.macs, "total", engineering)),
        column("parameters, network", lambda c: part(c.parameters, "network", "{:,}".format)),
        column("parameters, all", lambda c: part(c.parameters, "total", "{:,}".format)),
    ]
    if not any(row.costs for row in rows):
        return []
    return [Table("Cost of an image", telling(rows, columns))]


def column(
    name: str, text: Callable[[Cost], str], small: Callable[[Cost], str] = lambda cost: ""
) -> Column:
    """Of what rows cost; small print stands beside numbers alone."""

    def number(row: Row) -> str:
        return "–" if row.costs is None else text(row.costs)

    return Column(name, number, lambda row: "" if number(row) == "–" else small(row.costs))


def part(numbers: ByPart | None, name: str, written: Callable[[int], str]) -> str:
    """One of the numbers of parts, as text."""
    number = numbers and getattr(numbers, name)
    return written(number) if number else "–"


def cost_notes(rows: Sequence[Row]) -> list[str]:
    """What the columns are, and why numbers are missing."""
    costs = [row.costs for row in rows if row.costs is not None]
    if not costs:
        return []
    devices = "on " + " and ".join(dict.fromkeys(cost.device for cost in costs))
    reasons = dict.fromkeys(reason for cost in costs for reason in cost.missing.items())
    missing = [f"No {NAMES.get(name, name)} of some or all: {reason}." for name, reason in reasons]
    memory = [MEMORY] if any(cost.memory for cost in costs) else []
    return [*(note.format(devices=devices) for note in NOTES), *memory, *missing]
