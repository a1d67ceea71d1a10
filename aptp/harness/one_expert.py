"""One expert's own phase of recovery, in a process of its own."""

from __future__ import annotations

from pathlib import Path

from aptp.config import load_config
from aptp.core.progress import Progress
from aptp.core.record import Record
from aptp.harness.adapt import adapt
from aptp.harness.lists import check_list
from aptp.harness.recover import train_apart
from aptp.harness.spread import OwnPhase
from aptp.harness.workspace import Workspace
from aptp.host import Host


def recover_expert(out: Path, index: int, *, host: Host, progress: Progress) -> None:
    """Train an expert as the run in `out` left word; leaves the checkpoint and the log that the run itself would.

    Raises:
        RequestError: if no run did.
    """
    phase = OwnPhase.load(out, index)
    config = load_config(file=out / "config.yaml").resolved(host)
    work = Workspace.load(config, out, host, progress, Record.load(out / "record.json"))
    source, flips = work.dataset.fingerprint(), config.prepare.flips
    samples = work.preparer.latents(work.chosen.train, source, "training", flips).samples
    check_list(work.record.data, "training", samples)
    if config.adapt.steps:
        adapt(work, samples, source)
    work.train = work.preparer.pictures(samples, source, "training", flips)
    with progress.task(f"recovering expert {index}", phase.steps) as advance:
        train_apart(work, index, phase, lambda step, values: advance(note=f"loss {values['loss']:.4f}"))
