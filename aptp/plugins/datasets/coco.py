"""MS-COCO captions in the usual layout."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from aptp.core.data import CaptionedDataset, Sample, Split
from aptp.core.errors import RequestError, gist
from aptp.core.options import Options
from aptp.core.pictures import decode
from aptp.core.text import hashed
from aptp.plugins.datasets._shared import Splits, fingerprint_of, folder_of, inside, of_split, size_of

YEARS = (2014, 2017)
PARTS: dict[Split, str] = {"train": "train", "validation": "val"}
_RIGHT = "the folder that holds annotations/, train2014/ and val2014/ (or 2017)"


class Coco(CaptionedDataset):
    """The data set `coco`: `annotations/captions_train2014.json`, `train2014/`, and the same of `val2014` (or 2017).

    The pictures may also lie in `images/train2014/`. Training has every caption of every picture, each a sample.
    Validation has one caption a picture, and at most `validation` pictures; `seed` draws both, each picture by its own
    hash, so that a smaller subset is part of a larger one. The fingerprint covers names, captions and file sizes.

    `skipped` lists pictures that are missing or have no caption, and empty captions.

    Raises:
        RequestError: for a folder, or a captions file, that is not COCO's, and for a file name that points out of it.
    """

    class Options(Options):
        """Where the pictures are, and which are held out."""

        path: str = Field(description=_RIGHT)
        year: Literal[2014, 2017] | None = Field(None, description="needed where the folder holds both")
        validation: int | None = Field(30_000, gt=0, description="validation pictures, at most; none takes all")
        seed: int = Field(0, description="of the validation pictures and their captions")

    def __init__(self, options: Options) -> None:
        self.options = options
        self.skipped: dict[str, str] = {}
        self._sizes: dict[str, int] = {}
        self._root = folder_of("coco", options.path, _RIGHT)
        self._year = options.year or self._only_year()
        self._samples: Splits = {
            "train": [sample for samples in self._pictures("train") for sample in samples],
            "validation": self._held_out(),
        }

    def samples(self, split: Split) -> Sequence[Sample]:
        """The samples of a split, by the numbers of pictures and captions. Raises `RequestError` if there are none."""
        return of_split(f"coco folder {self.options.path!r}", self._samples, split, self.skipped)

    def fingerprint(self) -> str:
        """A hash of the names, captions and file sizes, and of which are held out."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint_of(
            f"coco {self._year}",
            ([split, s.id, s.caption, self._sizes[s.picture_id]] for split in PARTS for s in self._samples[split]),
        )

    def _only_year(self) -> int:
        found = [year for year in YEARS if (self._root / "annotations" / f"captions_train{year}.json").is_file()]
        if len(found) == 1:
            return found[0]
        if found:
            raise RequestError(
                f"coco folder {self.options.path!r} holds both 2014 and 2017; choose with data.year=2014 or 2017."
            )
        raise RequestError(
            f"coco folder {self.options.path!r} has no annotations/captions_train2014.json (or 2017); give {_RIGHT}."
        )

    def _held_out(self) -> list[Sample]:
        """One caption a picture; the pictures of the lowest hashes, in the order of their numbers."""

        def drawn(captions: list[Sample], what: str) -> float:
            return hashed(captions[0].picture_id, f"coco {what} {self.options.seed}")

        pictures = self._pictures("validation")
        by_hash = sorted(pictures, key=lambda captions: drawn(captions, "picture"))
        kept = {captions[0].picture_id for captions in by_hash[: self.options.validation]}
        return [
            captions[int(len(captions) * drawn(captions, "caption"))]
            for captions in pictures
            if captions[0].picture_id in kept
        ]

    def _pictures(self, split: Split) -> list[list[Sample]]:
        """The samples of each picture that is there and has a caption."""
        part = f"{PARTS[split]}{self._year}"
        file = self._root / "annotations" / f"captions_{part}.json"
        folder = next((p for p in (self._root / part, self._root / "images" / part) if p.is_dir()), None)
        if folder is None:
            raise RequestError(f"coco folder {self.options.path!r} has no folder {part}/; give {_RIGHT}.")
        names, captions = _read(file)
        for number in sorted(captions.keys() - names.keys()):
            self.skipped[f"{file.name}, picture {number}"] = "its captions are there, but not its name"
        pictures = []
        for number, name in sorted(names.items()):
            name = inside(name, f"picture {number} of {str(file)!r}")
            picture, size = f"{part}/{name}", size_of(folder / name)
            if size is None:
                self.skipped[picture] = "the file is missing"
                continue
            self._sizes[picture] = size
            samples = []
            for caption_number, caption in sorted(captions.get(number, ())):
                id_ = f"{picture}#{caption_number}"
                if caption:
                    opening = partial(decode, folder / name)
                    samples.append(Sample(id_, caption, opening, picture=picture, content=f"coco {picture} {size}"))
                else:
                    self.skipped[id_] = "its caption is empty"
            if samples:
                pictures.append(samples)
            else:
                self.skipped.setdefault(picture, "it has no caption")
        return pictures


def _read(file: Path) -> tuple[dict[int, str], dict[int, list[tuple[int, str]]]]:
    """Of every picture by its number: the file's name, and the captions with their own numbers."""
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        names = {int(image["id"]): str(image["file_name"]) for image in content["images"]}
        captions = defaultdict(list)
        for entry in content["annotations"]:
            captions[int(entry["image_id"])].append((int(entry["id"]), " ".join(str(entry["caption"]).split())))
    except OSError as error:
        raise RequestError(f"captions {str(file)!r} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError) as error:
        raise RequestError(
            f"{str(file)!r} is no captions file of COCO ({type(error).__name__}: {gist(error)}); it needs images with "
            "id and file_name, and annotations with id, image_id and caption."
        ) from error
    return names, dict(captions)
