"""A folder of pictures with `metadata.jsonl` or `metadata.csv`, the `imagefolder` layout of the datasets library."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

from pydantic import Field

from aptp.core.data import CaptionedDataset, Sample, Split
from aptp.core.errors import RequestError
from aptp.core.options import Options
from aptp.core.pictures import decode
from aptp.plugins.datasets._shared import in_validation, inside, size_of

METADATA = ("metadata.jsonl", "metadata.csv")
CAPTIONS = ("text", "caption", "prompt")
VALIDATION_FOLDERS = ("validation", "test")


class ImageFolder(CaptionedDataset):
    """The data set `imagefolder`.

    A metadata file lies beside the pictures: in the folder itself, or in `train/` and `validation/` (or `test/`). Its
    columns are `file_name`, relative to it, the caption (`text`, else `caption`, else `prompt`), and at will `kind`.
    Without a validation folder a sample's split is settled by a hash of its caption: one caption never is in both
    splits, and more pictures move none that was there.

    `skipped` lists by name what was left out (a missing file, an empty caption) and why. A picture named in several
    rows is several samples, the later ones with `#2`, `#3`, … after their name; it is encoded once.

    Raises:
        RequestError: for a folder, a metadata file or a line of it that cannot be read, and for a file name that points
            out of the folder.
    """

    class Options(Options):
        """Where the pictures are, and how many are kept for validation."""

        path: str = Field(description="folder of the pictures and their metadata")
        validation: float = Field(0.1, gt=0, lt=1, description="share for validation if there is no folder for it")

    def __init__(self, options: Options) -> None:
        self.options = options
        self.skipped: dict[str, str] = {}
        self._seen: dict[str, int] = {}
        self._rows: list[tuple[Split, str, str, str | None, str | None]] = []
        self._digests: dict[Path, str | None] = {}
        self._root = root = Path(options.path).expanduser()
        if not root.is_dir():
            raise RequestError(
                f"data folder {options.path!r} {'is a file' if root.exists() else 'does not exist'}; {_RIGHT}."
            )
        train = root / "train" if _metadata(root / "train") else root
        if _metadata(train) is None:
            raise RequestError(
                f"data folder {options.path!r} has no {' or '.join(METADATA)}, nor has its train/; {_RIGHT}."
            )
        apart = next((root / name for name in VALIDATION_FOLDERS if _metadata(root / name)), None)
        found = list(self._read(train, "train"))
        self._samples: dict[Split, list[Sample]] = {
            "train": [s for s in found if apart or not in_validation(s.caption, options.validation)],
            "validation": list(self._read(apart, "validation"))
            if apart
            else [s for s in found if in_validation(s.caption, options.validation)],
        }

    def samples(self, split: Split) -> Sequence[Sample]:
        """The samples of a split in the order of their metadata.

        Raises:
            RequestError: if there are none.
        """
        if split not in self._samples:
            raise ValueError(f"imagefolder has no split {split!r}: choose 'train' or 'validation'.")
        if samples := self._samples[split]:
            return samples
        where = f"data folder {self.options.path!r} has no usable {split} sample"
        if self.skipped:
            name, reason = next(iter(self.skipped.items()))
            raise RequestError(
                f"{where}: of the rows left out ({len(self.skipped)}) the first is {name!r}, because {reason}."
            )
        if any(self._samples.values()):
            raise RequestError(
                f"{where} at the share validation={self.options.validation}; change the share, add pictures with other "
                "captions, or give a validation/ folder."
            )
        raise RequestError(f"{where}, as its metadata has no rows; {_RIGHT}.")

    def fingerprint(self) -> str:
        """A hash of the names, captions, kinds and contents, and of the share; not of where the folder lies."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        sha = hashlib.sha256(f"imagefolder {self.options.validation}".encode())
        for split, *row in self._rows:
            sha.update(f"{split} {json.dumps(row)}\n".encode())
        return sha.hexdigest()

    def _read(self, folder: Path, split: Split) -> Iterator[Sample]:
        metadata = _metadata(folder)
        assert metadata is not None
        rows = dict(_rows(metadata))
        columns = {column for row in rows.values() for column in row if column is not None}
        caption_column = next((column for column in CAPTIONS if column in columns), None)
        if rows and (caption_column is None or "file_name" not in columns):
            missing = "file_name" if "file_name" not in columns else " or ".join(CAPTIONS)
            raise RequestError(
                f"{str(metadata)!r} has no column {missing}; its columns are {', '.join(sorted(columns))}."
            )
        for line, row in rows.items():
            name, caption, kind = row.get("file_name"), row.get(str(caption_column)), row.get("kind")
            if not isinstance(name, str) or not name.strip():
                self.skipped[f"{metadata.relative_to(self._root).as_posix()}, line {line}"] = "it names no file"
                continue
            path = folder / inside(name, f"line {line} of {str(metadata)!r}")
            id_ = self._id(path)
            if not isinstance(caption, str) or not caption.strip():
                self.skipped[id_] = (
                    "its caption is empty" if not caption or isinstance(caption, str) else "its caption is no text"
                )
            elif size_of(path) is None:
                self.skipped[id_] = "the file is missing"
            else:
                kind = str(kind) if kind not in (None, "") else None
                if path not in self._digests:
                    self._digests[path] = _digest(path)
                content = self._digests[path]
                self._rows.append((split, id_, caption, kind, content))
                picture = path.relative_to(self._root).as_posix()
                yield Sample(id_, caption.strip(), partial(decode, path), kind, picture, content)

    def _id(self, path: Path) -> str:
        name = path.relative_to(self._root).as_posix()
        self._seen[name] = count = self._seen.get(name, 0) + 1
        return name if count == 1 else f"{name}#{count}"


_RIGHT = "give a folder of pictures with a metadata.jsonl or metadata.csv that has the columns file_name and text"


def _metadata(folder: Path) -> Path | None:
    """The metadata file of a folder. Raises `RequestError` if it has one of each kind."""
    found = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(found) > 1:
        raise RequestError(f"data folder {str(folder)!r} has both {' and '.join(METADATA)}; keep one of them.")
    return found[0] if found else None


def _rows(metadata: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    """The rows of a metadata file by line number."""
    line = 0
    try:
        with metadata.open(encoding="utf-8-sig", newline="") as file:
            if metadata.suffix == ".csv":
                reader = csv.DictReader(file)
                for row in reader:
                    yield (line := reader.line_num), row
                return
            for line, text in enumerate(file, 1):
                if text.strip():
                    row = json.loads(text)
                    if not isinstance(row, dict):
                        raise ValueError("not an object")
                    yield line, row
    except UnicodeDecodeError as error:
        raise RequestError(f"{str(metadata)!r} is not UTF-8 text; save it as UTF-8.") from error
    except csv.Error as error:
        raise RequestError(f"{str(metadata)!r} is no CSV after line {line} ({error}); quote its fields.") from error
    except ValueError as error:
        raise RequestError(
            f"line {line} of {str(metadata)!r} is no JSON object; each line should read "
            '{"file_name": "a.png", "text": "its caption"}.'
        ) from error


def _digest(path: Path) -> str | None:
    """A hash of a file's content, or None for one that cannot be read: it is skipped where pictures are encoded."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
