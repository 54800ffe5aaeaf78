"""What an image costs, beside how good it is: time, memory, multiply-accumulates, parameters.

    latency      seconds from the call for one image until it is made: the median (p50) of several
                 calls, and their 95th percentile (p95)
    throughput   images a second in one call for many, at the best of a few batches
    memory       bytes of weights, and of the most that a call for one image allocates besides
    MACs         multiply-accumulates of the matrix products, convolutions and attentions of such a
                 call, half of the FLOPs that torch counts while it runs

The first calls, which choose kernels and fill caches, are those that are counted and never timed.
Times end when the accelerator has done its work. A model is measured for SECONDS at most, or for
SHARE of the time that its scored images take one by one, where that is less; FEWEST calls are timed
however long they take.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from ..schema import printable

SECONDS = 5.0  # of a model's timed calls
SHARE = 0.05  # of the time that its images take one by one
FEWEST, ENOUGH, RUNS = 3, 20, 40  # calls that are timed: at least, for a p95, and at most
TO_LATENCY = 0.8  # of the time; throughput has the rest
BATCHES = (4, 16, 64, 256)

Maker = Callable[[int], object]  # makes so many images, from what is asked for to pixels
Parts = Mapping[str, Sequence[nn.Module]]  # by the fields of ByPart


@dataclass(frozen=True)
class ByPart:
    """A number of each part of a pipeline; network: what is distilled."""

    network: int = 0
    vae: int = 0
    text_encoder: int = 0
    other: int = 0

    @property
    def total(self) -> int:
        """Of all parts."""
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Cost:
    """What an image of one model costs on a device; None for what was not measured.

    runs: how many calls were timed. latency, p95: seconds. throughput: images a second, in calls
    for `batch` images. memory: bytes. macs: an image. missing: why, by field, something is None.
    """

    device: str
    runs: int = 0
    latency: float | None = None
    p95: float | None = None
    throughput: float | None = None
    batch: int | None = None
    memory: int | None = None
    macs: ByPart | None = None
    parameters: ByPart | None = None
    missing: dict[str, Any] = field(default_factory=dict)


def measure(call: Maker, parts: Parts, images: int, most: int) -> Cost:
    """The cost of a model whose parts `call` runs, without their parameters.

    images: how many are scored, which bounds the time that is spent. most: the largest batch. What
    fails is missing from it, with the reason."""
    missing: dict[str, str] = {}

    def attempt(name: str, number: Callable[[], Any]) -> Any:
        try:
            return number()
        except Exception as error:  # others' pipelines raise anything, and scores must not be lost
            missing[name] = reason_of(error)
            return None

    macs = attempt("macs", lambda: macs_of(call, parts))
    memory = attempt("memory", lambda: peak_memory(call, parts))
    times = attempt("latency", lambda: latencies(call, images)) or []
    left = allowed(images, times[0]) - sum(times) if times else 0
    rate, batch = throughput(call, median(times), most, left) if times else (None, None)
    if len(times) < ENOUGH and times:
        missing["p95"] = f"{ENOUGH} calls are the least"
    return Cost(
        device=described(device_of(parts)),
        runs=len(times),
        latency=median(times) if times else None,
        p95=float(np.percentile(times, 95)) if len(times) >= ENOUGH else None,
        throughput=rate,
        batch=batch,
        memory=memory,
        macs=macs,
        missing=missing,
    )


def allowed(images: int, alone: float) -> float:
    """Seconds of timed calls of a model whose images take so long one by one."""
    return min(SECONDS, SHARE * images * alone)


def latencies(call: Maker, images: int) -> list[float]:
    """Seconds of calls for one image."""
    times = [seconds_of(call, 1)]
    limit = TO_LATENCY * allowed(images, times[0])
    while len(times) < FEWEST or (len(times) < RUNS and sum(times) < limit):
        times.append(seconds_of(call, 1))
    return times


def throughput(call: Maker, alone: float, most: int, seconds: float) -> tuple[float, int]:
    """Images a second, and the batch they are made in; alone: seconds of an image by itself."""
    best, each, end = (1 / alone, 1), alone, time.perf_counter() + seconds
    for batch in BATCHES:
        # In a larger batch an image takes at most as long as before; one call is for warming up.
        if batch > most or time.perf_counter() + 2 * batch * each > end:
            break
        try:
            call(batch)
            each = seconds_of(call, batch) / batch
        except Exception:  # out of memory, by whatever name: what fitted remains the best
            break
        best = max(best, (1 / each, batch))
    return best


def seconds_of(call: Maker, count: int) -> float:
    """Of one call, until the device has done its work."""
    wait()
    start = time.perf_counter()
    call(count)
    wait()
    return time.perf_counter() - start


def wait() -> None:
    """For whatever an accelerator still does."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def macs_of(call: Maker, parts: Parts) -> ByPart:
    """Multiply-accumulates of a call for one image; `other` has what is done outside all parts."""
    counter = FlopCounterMode(display=False)
    # The one kernel of attention that torch has a formula for, but does not list.
    attention = torch.ops.aten
    formula = flop_registry[attention._scaled_dot_product_flash_attention]
    counter.flop_registry[attention._scaled_dot_product_flash_attention_for_cpu] = formula
    named = {name: modules for name, modules in parts.items() if name != "other"}
    with spelled_out(), counter, grown(named, counter.get_total_flops) as flops:
        call(1)
    other = counter.get_total_flops() - sum(flops.values())
    return ByPart(**{name: found // 2 for name, found in (flops | {"other": other}).items()})


@contextmanager
def spelled_out() -> Iterator[None]:
    """torch's own attention layers run as the operations they consist of, which are counted."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def grown(parts: Parts, total: Callable[[], int]) -> Iterator[dict[str, int]]:
    """By how much `total` grows inside each part.

    A part is entered by whichever of its modules is called first, as `vae.decode` calls its decoder
    and never the VAE; what it calls of other parts is its own."""
    found, entered, hooks = dict.fromkeys(parts, 0), [], []

    def enter(*_: object) -> None:
        entered.append(total())

    def leaving(name: str) -> Callable[..., None]:
        def leave(*_: object) -> None:
            start = entered.pop()
            if not entered:
                found[name] += total() - start

        return leave

    for name, modules in parts.items():
        for module in {m for part in modules for m in part.modules()}:
            hooks.append(module.register_forward_pre_hook(enter))
            hooks.append(module.register_forward_hook(leaving(name), always_call=True))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def peak_memory(call: Maker, parts: Parts) -> int:
    """Bytes on the device, without what other models have there.

    Raises NotImplementedError for a device whose memory torch does not count."""
    kind = device_of(parts).type
    if kind not in ("cpu", "cuda"):
        raise NotImplementedError(f"torch counts no memory on {kind}")
    gc.collect()  # what lay there unreachable must not go in between
    nets = (net for part in parts.values() for net in part)
    weights = sum(each.nbytes for net in nets for each in tensors(net) if each.device.type == kind)
    return weights + (allocated_on_cuda(call) if kind == "cuda" else allocated_on_cpu(call))


def allocated_on_cuda(call: Maker) -> int:
    """The most bytes that a call for one image holds at a time."""
    wait()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call(1)
    wait()
    return torch.cuda.max_memory_allocated() - before


def allocated_on_cpu(call: Maker) -> int:
    """The same of torch's allocator on the CPU, whose every event the profiler notes."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it says that there is no GPU
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as noted:
        call(1)
    events = [e for e in noted.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in events), initial=0))


def device_of(parts: Parts) -> torch.device:
    """Where the network is; the CPU where there are no parts."""
    found = (tensor for net in parts.get("network", ()) for tensor in tensors(net))
    return next((tensor.device for tensor in found), torch.device("cpu"))


def described(device: torch.device) -> str:
    """What times depend on: the accelerator's name, or how many threads there are."""
    if device.type == "cuda":
        return printable(torch.cuda.get_device_name(device))
    return f"CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


def tensors(net: nn.Module) -> Iterator[torch.Tensor]:
    """Weights and buffers."""
    yield from net.parameters()
    yield from net.buffers()


def reason_of(error: Exception) -> str:
    """One printable line."""
    words = " ".join(str(error).split())
    return printable(f"{type(error).__name__}: {words}"[:200])
