"""A build of shards that is ended between two of them."""

import pytest

from stepdistill.data import shards


def ended_before(monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    """Let Ctrl-C come before shard `last` is written, until the patch is undone."""
    real = shards.write_shard

    def dies(folder, k, tensors):
        if k == last:
            raise KeyboardInterrupt
        real(folder, k, tensors)

    monkeypatch.setattr(shards, "write_shard", dies)
