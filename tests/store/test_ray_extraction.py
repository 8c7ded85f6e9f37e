"""A cluster of two workers on this machine gives the bytes that one process gives, also where one of them dies."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

pytest.importorskip("zarr")
ray = pytest.importorskip("ray")
from small_extraction import Linear, contents, small  # noqa: E402


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where the workers find the collector
    small(tmp_path / "one")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        collector = Linear(die=tmp_path / "died")
        store = small(tmp_path / "cluster", collector=collector, workers=2, engine="ray")
        assert ray.is_initialized()  # a cluster that was there before stays
    finally:
        ray.shutdown()
    assert (tmp_path / "died").exists()
    assert len(store) == 11
    assert contents(tmp_path / "cluster") == contents(tmp_path / "one")
