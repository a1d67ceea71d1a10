"""The manifest of a bundle: which files it has, their sizes and SHA-256, checked before anything of them is read.

It says that files are whole and are those that were written, not who wrote them. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from aptp.core.errors import RequestError, gist
from aptp.core.files import write_json

MANIFEST = "manifest.json"
FORMAT = 1
LARGEST = 4 * 2**20
"""Bytes of a manifest: some 30,000 files."""
LARGEST_JSON = 64 * 2**20
"""Bytes of any other JSON file: the largest tokenizers have half of that."""
SUFFIXES = ("", ".json", ".safetensors", ".txt", ".model", ".md")
"""Of the files that a bundle may have: configurations, weights, vocabularies, licences; nothing that is unpickled."""
ADAPTER = "adapter_config.json"
"""Where peft is installed, transformers loads what it names: a model from anywhere."""
NAME = re.compile(r"\w[\w.+-]*(/\w[\w.+-]*)*")
"""A path inside the bundle: no part is empty, hidden or `..`."""
LONGEST = 255
"""Bytes of such a path: what every file system takes."""
BLOBS = "blobs"
"""Where the hub's cache keeps the files to which the names in `snapshots/COMMIT` are links."""


@dataclass(frozen=True)
class Manifest:
    """The files of a bundle in `folder`: {name: (bytes, SHA-256)}."""

    folder: Path
    files: Mapping[str, tuple[int, str]]
    _verified: set[str] = field(default_factory=set, compare=False, repr=False)

    @classmethod
    def of(cls, folder: Path) -> Manifest:
        """Of all files that `folder` has now."""
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MANIFEST]
        return cls(folder, {p.relative_to(folder).as_posix(): (p.stat().st_size, sha256(p)) for p in paths})

    def save(self) -> None:
        """Write it into the folder."""
        files = {name: {"size": size, "sha256": digest} for name, (size, digest) in self.files.items()}
        write_json(self.folder / MANIFEST, {"format": FORMAT, "files": files})

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read it, and see that the files are there with their sizes, lie in the folder and have no company.

        Company is refused in the subfolders that the manifest names, because loaders look for files there by
        themselves; what lies beside these is not read.

        Raises:
            RequestError: that names the first file which does not fit.
        """
        manifest = cls(folder, _read(folder / MANIFEST))
        for name, (size, _) in manifest.files.items():
            manifest._check(name, size)
        for top in sorted({name.split("/")[0] for name in manifest.files if "/" in name}):
            for path in sorted((folder / top).rglob("*")):
                name = path.relative_to(folder).as_posix()
                if name not in manifest.files and (path.is_symlink() or not path.is_dir()):
                    raise manifest._refusal(name, "which its manifest does not name")
        return manifest

    def _check(self, name: str, size: int) -> None:
        file = self.folder / name
        if not file.is_file():
            raise self._refusal(name, "which is missing")
        if not _inside(file, self.folder):
            raise self._refusal(name, "which is a link out of it")
        if (found := file.stat().st_size) != size:
            raise self._refusal(name, f"which has {found:,} bytes and should have {size:,}")
        if file.suffix == ".json" and size > LARGEST_JSON:
            raise self._refusal(name, f"which is larger ({size:,} bytes) than a configuration may be")

    def admit(self, name: str, largest: int) -> None:
        """See that a file which it need not name lies in the folder and has at most `largest` bytes.

        Raises:
            RequestError: if not.
        """
        if (size := (self.folder / name).stat().st_size) > largest:
            raise self._refusal(name, f"which is larger ({size:,} bytes) than such a file may be")
        self._check(name, size)

    def require(self, *names: str) -> None:
        """Raise `RequestError` for the first file that it does not name."""
        for name in names:
            if name not in self.files:
                raise RequestError(
                    f"{str(self.folder / MANIFEST)!r} names no {name!r}, without which there is no bundle."
                )

    def verify(self, *parts: str) -> None:
        """Compare the SHA-256 of the files `parts`, and of those in the folders `parts`; of each file once.

        Raises:
            RequestError: that names the first file which differs.
        """
        for name in sorted(self.files.keys() - self._verified):
            if not any(name == part or name.startswith(f"{part}/") for part in parts):
                continue
            if sha256(self.folder / name) != self.files[name][1]:
                raise self._refusal(name, "whose content is not what its manifest says")
            self._verified.add(name)

    def _refusal(self, name: str, why: str) -> RequestError:
        return RequestError(f"bundle {str(self.folder)!r} has a file {name!r} {why}; get it anew from where it came.")

    @property
    def revision(self) -> str:
        """A short hash of all that it names: bundles with the same one have the same files."""
        listed = json.dumps({name: list(entry) for name, entry in sorted(self.files.items())})
        return hashlib.sha256(listed.encode()).hexdigest()[:12]


def may_travel(path: Path) -> bool:
    """Whether a file is of a kind that a bundle may have."""
    return path.is_file() and path.suffix in SUFFIXES and ".bin" not in path.suffixes


def check_weight_lists(folder: Path) -> None:
    """Raise `ValueError` for a list of weights that lie elsewhere, or that a loader would unpickle."""
    for path in sorted(folder.rglob("*.safetensors.index*.json")):  # of a variant: .index.fp16.json
        for weights in json.loads(path.read_text(encoding="utf-8"))["weight_map"].values():
            if Path(weights).name != weights:
                raise ValueError(f"its file {path.name!r} names weights {weights!r} in another folder")
            if not weights.endswith(".safetensors"):
                raise ValueError(f"its file {path.name!r} names weights {weights!r}, which are no safetensors")


def sha256(path: Path) -> str:
    """The hash of a file, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def paths_in(data: Any) -> Iterator[str]:
    """Strings anywhere in JSON data that lead out of a folder: absolute, from a home, or through `..`."""
    match data:
        case str() if PurePath(data).is_absolute() or data.startswith("~") or ".." in re.split(r"[/\\]", data):
            yield data
        case dict():
            yield from (path for value in data.values() for path in paths_in(value))
        case list():
            yield from (path for value in data for path in paths_in(value))


def _inside(file: Path, folder: Path) -> bool:
    """Whether a file lies in the folder, or where the hub's cache keeps the files of that folder."""
    homes = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        homes.append(folder.resolve().parent.parent / BLOBS)
    return any(file.resolve().is_relative_to(home) for home in homes)


def _read(path: Path) -> dict[str, tuple[int, str]]:
    def refuse(why: str) -> RequestError:
        return RequestError(f"{str(path)!r} is no manifest: {why}.")

    try:
        if (size := path.stat().st_size) > LARGEST:
            raise refuse(f"it has {size:,} bytes, and no manifest has over {LARGEST:,}")
        data = json.loads(path.read_text(encoding="utf-8"))
    except RequestError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise refuse(gist(error).rstrip(".")) from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise refuse(f"its format is not {FORMAT}, which this version of aptp reads")
    if not isinstance(data.get("files"), dict) or not data["files"]:
        raise refuse("it names no files")
    return {name: _entry(name, entry, refuse) for name, entry in data["files"].items()}


def _entry(name: str, entry: Any, refuse: Any) -> tuple[int, str]:
    if not NAME.fullmatch(name) or name == MANIFEST or len(name.encode()) > LONGEST:
        raise refuse(f"{name[:100]!r} is no name of a file inside the bundle")
    if PurePath(name).name.lower() == ADAPTER:
        raise refuse(f"{name!r} would have an adapter loaded, and whatever else that names; merge it into the weights")
    if PurePath(name).suffix not in SUFFIXES:
        raise refuse(f"{name!r} is of a kind that no bundle has; {', '.join(filter(None, SUFFIXES))} are right")
    match entry:
        case {"size": int(size), "sha256": str(digest)} if size >= 0 and re.fullmatch(r"[0-9a-f]{64}", digest):
            return size, digest
    raise refuse(f"{name!r} has no size and SHA-256")
