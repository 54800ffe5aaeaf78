"""What roles cost in memory, measured by storages and as `plan` predicts it, on a large network."""

import runpy

import pytest

from stepdistill.resources import PACKAGE


@pytest.mark.full(shard="memory")
@pytest.mark.parametrize("config", ["smoke", "shapes-tdm-lora"])
def test_adapters_fit_beside_their_base_and_plan_knows(config, figure):
    script = runpy.run_path(str(PACKAGE.parent / "eval" / "memory.py"))
    seen = {name: script["measure"](config, how) for name, how in script["SHARING"].items()}
    for name, memory in seen.items():
        figure(f"{name}: of the teacher's weights", memory.measured / memory.base)
        figure(f"{name}: plan / measured", memory.planned / memory.measured)
        assert memory.base >= 4 * 50e6
        assert memory.planned == pytest.approx(memory.measured, rel=0.05)
    copies, adapters = seen["full copies"], seen["adapters, rank 16"]
    assert adapters.measured <= 1.35 * adapters.base
    assert copies.measured >= 3 * copies.base
