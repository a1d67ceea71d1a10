"""Conceptual Captions, or any web set in its layout: a TSV with its pictures, or img2dataset's shards or files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from pydantic import Field

from aptp.core.data import CaptionedDataset, Sample, Split
from aptp.core.errors import RequestError
from aptp.core.options import Options
from aptp.plugins.datasets._pairs import Found, read_files, read_shards
from aptp.plugins.datasets._shared import Splits, divided, fingerprint_of, folder_of, of_split
from aptp.plugins.datasets._table import Naming, read_table

FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train", "training"), "validation": ("validation", "val")}
TABLES: dict[Split, str] = {"train": "train", "validation": "val"}
"""How the name of a split's TSV starts, in any case of letters."""
_RIGHT = "a folder with .tar shards, with pictures and .txt files, or with a .tsv of captions and addresses"


class CC3M(CaptionedDataset):
    """The data set `cc3m`.

    The folder holds the pictures, or `train/` (`training/`) and `validation/` (`val/`) do, each in one of three forms:
    tar shards or files as img2dataset writes them, or a TSV with pictures beside. A TSV may also lie above the folder
    of its pictures, as `Train….tsv` and `Val….tsv`. Without a validation part a picture's split is settled by a hash of
    its name. The fingerprint covers names, captions and file sizes.

    `skipped` lists rows without a picture, pictures without a caption, and shards that are cut short.

    Raises:
        RequestError: for a folder without any of these, for a file name in a TSV that points out of it, and for a TSV
            beside captions of img2dataset's, unless it names its pictures.
    """

    class Options(Options):
        """Where the pictures are, what they are called, and how many are kept for validation."""

        path: str = Field(description=_RIGHT)
        naming: Naming = Field(
            "index", description="how a TSV's pictures are called: by row number, CRC-32 of the address, or its end"
        )
        validation: float = Field(0.1, gt=0, lt=1, description="share for validation if there is no part for it")

    def __init__(self, options: Options) -> None:
        self.options = options
        self.skipped: dict[str, str] = {}
        self._root = root = folder_of("cc3m", options.path, _RIGHT)
        self._sizes: dict[str, int] = {}
        train, held_out = self._part("train"), self._part("validation")
        if held_out and not train:
            raise RequestError(
                f"cc3m folder {options.path!r} has a part for validation and none for training; put that into train/."
            )
        samples = [found.sample for found in self._kept(self._read(*(train or (_table(root), root))))]
        self._samples: Splits = (
            {"train": samples, "validation": [found.sample for found in self._kept(self._read(*held_out))]}
            if held_out
            else divided(samples, options.validation)
        )

    def samples(self, split: Split) -> Sequence[Sample]:
        """The samples of a split by name. Raises `RequestError` if there are none."""
        return of_split(f"cc3m folder {self.options.path!r}", self._samples, split, self.skipped)

    def fingerprint(self) -> str:
        """A hash of the names, captions and file sizes, and of which are held out."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        rows = ([split, s.id, s.caption, self._sizes[s.id]] for split in FOLDERS for s in self._samples[split])
        return fingerprint_of("cc3m", rows)

    def _part(self, split: Split) -> tuple[Path | None, Path] | None:
        """The TSV, if there is one, and the folder of a split's pictures; None where nothing is the split's alone."""
        folder = next((self._root / name for name in FOLDERS[split] if (self._root / name).is_dir()), None)
        tables = sorted(p for p in self._root.glob("*.tsv") if p.name.lower().startswith(TABLES[split]))
        if len(tables) > 1:
            raise RequestError(f"{str(tables[0])!r} and {tables[1].name!r} are both tables of {split}; keep one.")
        if tables:
            return tables[0], folder or self._root
        return (_table(folder), folder) if folder else None

    def _read(self, table: Path | None, folder: Path) -> Iterable[Found]:
        if table:
            return read_table(self._root, table, folder, self.options.naming, self.skipped)
        if next(folder.rglob("*.tar"), None):
            return read_shards(self._root, folder, self.skipped)
        if next(folder.rglob("*.txt"), None) or next(folder.rglob("*.json"), None):
            return read_files(self._root, folder, self.skipped)
        raise RequestError(f"cc3m folder {str(folder)!r} holds no captioned pictures; give {_RIGHT}.")

    def _kept(self, pairs: Iterable[Found]) -> Iterable[Found]:
        for found in sorted(pairs, key=lambda found: found.sample.id):
            self._sizes[found.sample.id] = found.size
            yield found


def _table(folder: Path) -> Path | None:
    """The one TSV of a folder, if any."""
    tables = sorted(folder.glob("*.tsv"))
    if len(tables) > 1:
        raise RequestError(
            f"cc3m folder {str(folder)!r} holds several .tsv files, such as {tables[0].name!r}; keep one."
        )
    return tables[0] if tables else None
