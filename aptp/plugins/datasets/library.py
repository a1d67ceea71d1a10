"""Whatever the datasets library loads, from disk or from the hub."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from pydantic import Field

from aptp.core.data import CaptionedDataset, Sample, Split
from aptp.core.errors import RequestError, gist, unknown
from aptp.core.options import Options
from aptp.core.pictures import decode
from aptp.plugins.datasets._shared import Splits, divided, fingerprint_of, of_split, size_of

if TYPE_CHECKING:
    from datasets import Dataset

CAPTIONS = ("text", "caption", "captions", "prompt", "sentence", "sentences")
"""Names of columns that are taken for captions where several hold texts, the first first."""
VALIDATION = ("validation", "val", "test")


class Library(CaptionedDataset):
    """The data set `datasets`: pictures and captions in columns, as `save_to_disk` left them or as `load_dataset` does.

    The picture's column is found by its feature type, the caption's by that (texts, or lists of texts) and by name; a
    list of captions is as many samples, of which validation takes the first. A picture is called by its split and row.
    Without a validation split, a picture's is settled by a hash of that. The fingerprint covers captions, kinds and
    the sizes of the pictures.

    `skipped` lists rows without a caption or a picture.

    Raises:
        RequestError: if the library is missing, the set cannot be had, or has no such split or column.
    """

    class Options(Options):
        """Which set, and which of its splits and columns."""

        path: str = Field(description="folder, or name on the hub")
        config: str | None = Field(None, description="name of a configuration, of sets that have several")
        revision: str | None = Field(None, description="of the hub repository; its default branch if not given")
        train_split: str = Field("train", description="name of the training split")
        validation_split: str | None = Field(
            None, description=f"name of the validation split; by default the first there is of {', '.join(VALIDATION)}"
        )
        validation: float = Field(0.1, gt=0, lt=1, description="share for validation if there is no split for it")
        image: str | None = Field(None, description="column of the pictures; by default the only one that holds any")
        caption: str | None = Field(
            None, description=f"column of the captions; by default the only one of texts, or {', '.join(CAPTIONS)}"
        )
        kind: str | None = Field(None, description="column of the kinds, for analysis; by default there are none")

    def __init__(self, options: Options) -> None:
        self.options = options
        self.skipped: dict[str, str] = {}
        self._sizes: dict[str, list[int | None]] = {}
        splits = _load(options)
        if options.train_split not in splits:
            raise self._unknown("split", options.train_split, splits)
        held_out = options.validation_split or next((name for name in VALIDATION if name in splits), None)
        if held_out is not None and held_out not in splits:
            raise self._unknown("split", held_out, splits)
        train = [s for row in self._rows(options.train_split, splits[options.train_split]) for s in row]
        if held_out in (None, options.train_split):
            self._samples: Splits = divided(train, options.validation)
            self._samples["validation"] = _first_captions(self._samples["validation"])
        else:
            self._samples = {"train": train, "validation": [row[0] for row in self._rows(held_out, splits[held_out])]}

    def samples(self, split: Split) -> Sequence[Sample]:
        """The samples of a split in the order of their rows. Raises `RequestError` if there are none."""
        return of_split(f"data set {self.options.path!r}", self._samples, split, self.skipped)

    def fingerprint(self) -> str:
        """A hash of the captions, kinds and sizes of the pictures, and of which are held out."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        captions = ([split, s.id, s.caption, s.kind] for split, samples in self._samples.items() for s in samples)
        sizes = ([name, size] for name, sizes in self._sizes.items() for size in sizes)
        return fingerprint_of("datasets", (row for part in (captions, sizes) for row in part))

    def _rows(self, name: str, rows: Dataset) -> Iterator[list[Sample]]:
        """The samples of each row that has a caption and a picture."""
        from datasets import Image as Pictures

        image = self._column(rows, self.options.image, "pictures", (), _holds_pictures)
        caption = self._column(rows, self.options.caption, "captions", CAPTIONS, _holds_texts)
        kind = self.options.kind
        if kind is not None and kind not in rows.features:
            raise self._unknown("column", kind, rows.features)
        pictures = rows.select_columns([image]).cast_column(image, Pictures(decode=False))
        self._sizes[name] = sizes = list(_sizes(pictures, image))
        told = rows.select_columns([caption, *([kind] if kind else [])])[:]
        named = getattr(rows.features[kind], "int2str", str) if kind else str
        for i, said in enumerate(told[caption]):
            picture = f"{name}/{i}"
            texts = [" ".join(str(text).split()) for text in (said if isinstance(said, list) else [said]) if text]
            texts = [text for text in dict.fromkeys(texts) if text]
            if not texts:
                self.skipped[picture] = "it has no caption"
                continue
            if sizes[i] is None:
                self.skipped[picture] = "its picture is missing"
                continue
            of = None if kind is None or told[kind][i] is None else str(named(told[kind][i]))
            opened = partial(_open, pictures, image, i)
            yield [
                Sample(picture if n == 1 else f"{picture}#{n}", text, opened, of, picture)
                for n, text in enumerate(texts, 1)
            ]

    def _column(self, rows: Dataset, named: str | None, what: str, usual: Sequence[str], fits: Any) -> str:
        """The column that holds `what`: the named one, the first usual one that fits, or the only one."""
        if named is not None and named not in rows.features:
            raise self._unknown("column", named, rows.features)
        fitting = [name for name, feature in rows.features.items() if fits(feature)]
        if named is not None and named not in fitting:
            raise RequestError(f"column {named!r} of data set {self.options.path!r} holds no {what}.")
        found = [named] if named else [name for name in usual if name in fitting] or fitting
        if not found or (len(found) > 1 and found[0] not in usual):
            raise RequestError(
                f"data set {self.options.path!r} has {len(found) or 'no'} columns that may be the {what}, of "
                f"{', '.join(rows.features)}; name it with data.{'image' if what == 'pictures' else 'caption'}."
            )
        return found[0]

    def _unknown(self, what: str, name: str, known: Any) -> RequestError:
        return unknown(f"{what} of data set {self.options.path!r}:", name, known)


def _load(options: Library.Options) -> dict[str, Dataset]:
    """The splits of a set by name; one that has none is all `train_split`.

    Raises:
        RequestError: if it cannot be had, for whatever reason.
    """
    if find_spec("datasets") is None:
        raise RequestError(
            "data set 'datasets' needs the package datasets, which is not installed; pip install 'aptp[data]'."
        )
    import datasets

    folder = Path(options.path).expanduser()
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        found = (
            datasets.load_from_disk(str(folder))
            if saved
            else datasets.load_dataset(
                str(folder) if folder.exists() else options.path, options.config, revision=options.revision
            )
        )
    except Exception as error:  # builders and the hub's client raise errors of many families
        raise RequestError(
            f"data set {options.path!r} cannot be loaded ({gist(error).rstrip('.')}); give a folder that the datasets "
            "library reads, or a name on the hub while online or after it was downloaded."
        ) from error
    finally:
        if shown:
            datasets.enable_progress_bars()
    return dict(found) if isinstance(found, datasets.DatasetDict) else {options.train_split: found}


def _holds_pictures(feature: Any) -> bool:
    from datasets import Image as Pictures

    return isinstance(feature, Pictures)


def _holds_texts(feature: Any) -> bool:
    return getattr(getattr(feature, "feature", feature), "dtype", None) in ("string", "large_string")


def _open(pictures: Dataset, column: str, row: int) -> Image.Image:
    stored = pictures[row][column]
    return decode(stored["path"] if stored["bytes"] is None else io.BytesIO(stored["bytes"]))


def _sizes(pictures: Dataset, column: str) -> Iterator[int | None]:
    """Bytes of each picture, without reading any; None where there is none."""
    import pyarrow.compute as pc

    for table in pictures.with_format("arrow").iter(1000):
        stored = table[column].combine_chunks()
        for size, path in zip(
            pc.binary_length(stored.field("bytes")).to_pylist(), stored.field("path").to_pylist(), strict=True
        ):
            yield size_of(Path(path)) if size is None and path else size


def _first_captions(samples: Sequence[Sample]) -> list[Sample]:
    return list({sample.picture_id: sample for sample in reversed(samples)}.values())[::-1]
