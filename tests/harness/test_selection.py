"""Which samples a run uses."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from aptp.config import PrepareOptions
from aptp.core.data import CaptionedDataset, Sample
from aptp.core.options import Options
from aptp.harness.selection import choose


class Told(CaptionedDataset):
    """Nine training pictures with three captions each, five others."""

    class Options(Options):
        """Nothing to set."""

    def __init__(self) -> None:
        self.skipped = {"gone": "the file is missing"}

    def samples(self, split: str) -> Sequence[Sample]:
        count, captions = (9, 3) if split == "train" else (5, 1)
        return [
            Sample(
                f"{split} {i}#{k}",
                "" if (i, k) == (2, 1) else f"{i} said {k}",
                lambda: Image.new("RGB", (1, 1)),
                picture=f"{split} {i}",
            )
            for i in range(count)
            for k in range(captions)
        ]

    def fingerprint(self) -> str:
        return "told"


def test_a_limit_counts_pictures_and_keeps_all_their_captions() -> None:
    chosen = choose(Told(), PrepareOptions(train=4, validation=None), seed=0)
    pictures = {sample.picture for sample in chosen.train}
    assert len(pictures) == 4
    assert len(chosen.train) == sum(2 if name == "train 2" else 3 for name in pictures)
    assert len(chosen.validation) == 5
    others = {s.picture for s in choose(Told(), PrepareOptions(train=4), seed=1).train}
    assert pictures != others
    assert [s.id for s in chosen.train] == [s.id for s in choose(Told(), PrepareOptions(train=4), seed=0).train]


def test_what_is_left_out_is_said() -> None:
    chosen = choose(Told(), PrepareOptions(), seed=0)
    assert len(chosen.train) == 26
    assert chosen.skipped == {"gone": "the file is missing", "train 2#1": "its caption is empty"}
