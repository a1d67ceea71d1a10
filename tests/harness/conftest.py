"""A workspace over the random pipeline, for single stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import faiss
import pytest

from aptp.config import RunConfig
from aptp.core.progress import Quiet
from aptp.core.record import Record
from aptp.harness.workspace import Workspace
from aptp.host import default_host

OpenWork = Callable[..., Workspace]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    faiss.omp_set_num_threads(1)


@pytest.fixture(scope="session")
def base(small_config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The workspace of the small run, its data prepared."""
    record = Record(started=datetime.now(UTC).isoformat(), config={}, versions={}, hardware={})
    out = tmp_path_factory.mktemp("base")
    work = Workspace.open(small_config, out, default_host(), Quiet(), record)
    source = work.dataset.fingerprint()
    work.train = work.preparer.pictures(work.chosen.train, source, "training")
    work.validation = work.preparer.pictures(work.chosen.validation, source, "held-out")
    return work


@pytest.fixture
def open_work(base: Workspace, tmp_path: Path) -> OpenWork:
    """Makes fresh workspaces in `tmp_path` with changed settings, over the same model and data."""

    def make(out: str = "run", **changes: object) -> Workspace:
        config = RunConfig.model_validate(_merged(base.config.model_dump(), changes)).resolved(base.host)
        work = dataclasses.replace(base, config=config, out=tmp_path / out, record=base.record.model_copy(deep=True))
        work.train, work.validation = base.train, base.validation
        if config.encoder == base.config.encoder:
            work.encoder = base.encoder
        return work

    return make


def _merged(config: dict, changes: dict) -> dict:
    for key, value in changes.items():
        joins = isinstance(value, dict) and isinstance(config[key], dict) and "name" not in value
        config[key] = {**config[key], **value} if joins else value
    return config
