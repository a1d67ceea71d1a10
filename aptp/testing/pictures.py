"""Conformance of data sets and metrics."""

from __future__ import annotations

from collections.abc import Callable

import torch

from aptp.core.data import CaptionedDataset
from aptp.core.metric import GenerationBatch, Metric


def check_dataset(dataset: CaptionedDataset) -> None:
    """Both splits hold captioned RGB pictures under stable, distinct names, the same each time."""
    names: set[str] = set()
    for split in ("train", "validation"):
        samples, again = dataset.samples(split), dataset.samples(split)
        assert len(samples) > 0, f"split {split!r} is empty"
        assert [(s.id, s.caption) for s in samples] == [(s.id, s.caption) for s in again], "samples change"
        assert names.isdisjoint(s.id for s in samples), "a sample is in both splits"
        assert len({s.id for s in samples}) == len(samples), "two samples share a name"
        names |= {s.id for s in samples}
        for sample, same in zip(samples[:5], again[:5], strict=True):
            picture = sample.open()
            assert picture.mode == "RGB"
            assert picture.tobytes() == same.open().tobytes(), "a picture changes"
            assert isinstance(sample.caption, str)
    assert dataset.fingerprint() == dataset.fingerprint() != ""


def check_metric(make: Callable[[], Metric], count: int = 24, size: int = 64) -> None:
    """Answers with finite named figures, the same when asked again and whatever the batches are."""
    generator = torch.Generator().manual_seed(0)
    pictures, references = torch.randint(0, 256, (2, count, 3, size, size), generator=generator, dtype=torch.uint8)
    prompts, experts = [f"a picture of {i}" for i in range(count)], torch.arange(count) % 3
    figures = []
    for batch in (count, count // 3):
        metric = make()
        for rows in torch.arange(count).split(batch):
            metric.update(GenerationBatch(pictures[rows], [prompts[i] for i in rows], references[rows], experts[rows]))
        figures.append(metric.compute())
        assert metric.compute() == figures[-1], "asked again, it answers otherwise"
    assert figures[0], "no figures"
    for name, value in figures[0].items():
        assert isinstance(value, float), name
        assert torch.tensor(value).isfinite(), name
        assert abs(value - figures[1][name]) <= 1e-3 * max(1.0, abs(value)), f"{name} depends on the batches"
