"""Which samples of a data set a run uses: good captions only, a seeded subset where there are too many pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from aptp.config import PrepareOptions, RunConfig
from aptp.core.data import CaptionedDataset, Sample, Split
from aptp.core.errors import RequestError
from aptp.harness.training import generator_for
from aptp.routing import LONGEST_PROMPT, is_text

FEWEST_HELD_OUT = 4
"""Held-out pictures under which no distance can be measured."""


@dataclass(frozen=True)
class Chosen:
    """The samples of both splits, and why others were left out, by id."""

    train: list[Sample]
    validation: list[Sample]
    skipped: dict[str, str]


def choose(dataset: CaptionedDataset, options: PrepareOptions, seed: int) -> Chosen:
    """The samples of a run, in an order that depends on the seed alone."""
    skipped = dict(getattr(dataset, "skipped", {}))
    splits: dict[Split, list[Sample]] = {}
    limits: dict[Split, int | None] = {"train": options.train, "validation": options.validation}
    for split, limit in limits.items():
        good = []
        for sample in dataset.samples(split):
            if reason := _fault(sample.caption):
                skipped[sample.id] = reason
            else:
                good.append(sample)
        pictures = list(dict.fromkeys(sample.picture_id for sample in good))
        if limit is not None and limit < len(pictures):
            order = torch.randperm(len(pictures), generator=generator_for(seed, "subset", split))
            kept = {pictures[i] for i in order[:limit]}
            good = [sample for sample in good if sample.picture_id in kept]
        splits[split] = good
    return Chosen(splits["train"], splits["validation"], skipped)


def _fault(caption: str) -> str | None:
    if not caption.strip():
        return "its caption is empty"
    if len(caption) >= LONGEST_PROMPT:
        return f"its caption has {len(caption):,} characters"
    if not is_text(caption):
        return "its caption is broken Unicode"
    return None


def check_counts(config: RunConfig, train: Sequence[Sample], validation: Sequence[Sample]) -> None:
    """Raise `RequestError` where there are too few prompts for the experts, or too few pictures to measure anything."""
    prompts = len({sample.caption for sample in train})
    if config.experts > prompts:
        raise RequestError(f"{config.experts} experts are more than the {prompts} different training prompts.")
    if (held_out := len({sample.picture_id for sample in validation})) < FEWEST_HELD_OUT:
        raise RequestError(f"{held_out} held-out pictures are too few; at least {FEWEST_HELD_OUT} are needed.")
