"""The manifest: whatever differs from it is refused by name, and no name leads out of the folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aptp.core.errors import RequestError
from aptp.core.manifest import LARGEST, LARGEST_JSON, MANIFEST, NAME, Manifest, paths_in

FILES = {"README.md": b"a card", "parts/one.json": b"{}", "parts/deep/two.safetensors": b"weights", "LICENSE": b"free"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of a few files, with its manifest."""
    folder = tmp_path / "bundle"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    Manifest.of(folder).save()
    return folder


def test_what_was_written_is_accepted(folder: Path) -> None:
    manifest = Manifest.load(folder)
    assert set(manifest.files) == set(FILES)
    assert {name: size for name, (size, _) in manifest.files.items()} == {n: len(c) for n, c in FILES.items()}
    manifest.verify(*FILES)


def test_the_revision_is_that_of_the_content(folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "elsewhere")
    assert Manifest.load(folder).revision == Manifest.load(copied).revision
    (copied / "README.md").write_text("a CARD")
    Manifest.of(copied).save()
    assert Manifest.load(folder).revision != Manifest.load(copied).revision


def test_what_lies_beside_the_folders_is_not_looked_at(folder: Path) -> None:
    for name in (".gitattributes", "notes.bin", ".cache/huggingface/x", "more/pictures.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    Manifest.load(folder)


def linked(file: Path, target: Path) -> None:
    """A link out of the folder to a file of the same content."""
    target.write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(target)


def linked_folder(part: Path, target: Path) -> None:
    shutil.move(part, target)
    part.symlink_to(target)


CHANGES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "missing": ("parts/one.json", lambda folder: (folder / "parts/one.json").unlink()),
    "cut": ("deep/two.safetensors' which has 3", lambda f: (f / "parts/deep/two.safetensors").write_bytes(b"wei")),
    "a folder instead": ("parts/one.json", lambda f: ((f / "parts/one.json").unlink(), (f / "parts/one.json").mkdir())),
    "a pickle": ("parts/model.bin", lambda folder: (folder / "parts/model.bin").write_bytes(b"\x80")),
    "a hidden file": ("parts/.two.json", lambda folder: (folder / "parts/.two.json").touch()),
    "code": ("parts/deep/loader.py", lambda folder: (folder / "parts/deep/loader.py").write_text("import os")),
    "link out": ("README.md' which is a link", lambda folder: linked(folder / "README.md", folder.parent / "card")),
    "linked folder": ("two.safetensors' which is a link", lambda f: linked_folder(f / "parts/deep", f.parent / "d")),
    "another link out": ("parts/more", lambda folder: (folder / "parts/more").symlink_to(folder.parent)),
    "dangling link": ("parts/gone.json", lambda folder: (folder / "parts/gone.json").symlink_to("nowhere")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_fit_is_refused_by_name(folder: Path, change: str) -> None:
    named, apply = CHANGES[change]
    apply(folder)
    with pytest.raises(RequestError, match=named) as caught:
        Manifest.load(folder)
    assert "\n" not in str(caught.value)


@given(st.data())
def test_a_changed_byte_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("bundle")
    content = data.draw(st.binary(min_size=1, max_size=64))
    (folder / "weights.safetensors").write_bytes(content)
    (folder / "other.txt").write_bytes(content)
    Manifest.of(folder).save()
    place, bit = data.draw(st.integers(0, len(content) - 1)), 1 << data.draw(st.integers(0, 7))
    changed = bytes(byte ^ bit if i == place else byte for i, byte in enumerate(content))
    (folder / "weights.safetensors").write_bytes(changed)
    manifest = Manifest.load(folder)
    manifest.verify("other.txt")
    with pytest.raises(RequestError, match=r"'weights\.safetensors' whose content is not"):
        manifest.verify(*manifest.files)


def test_each_file_is_hashed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest.load(folder)
    manifest.verify("parts")
    monkeypatch.setattr("aptp.core.manifest.sha256", pytest.fail)
    manifest.verify("parts", "parts/one.json")
    monkeypatch.undo()
    manifest.verify("README.md")


def test_links_into_the_hub_s_cache_are_its_way_of_keeping_files(tmp_path: Path, folder: Path) -> None:
    home = tmp_path / "models--someone--bundle"
    snapshot = Path(shutil.copytree(folder, home / "snapshots" / "0123"))
    (home / "blobs").mkdir()
    linked(snapshot / "README.md", home / "blobs" / "card")
    Manifest.load(snapshot).verify("README.md")
    linked(snapshot / "LICENSE", home / "elsewhere")
    with pytest.raises(RequestError, match="LICENSE"):
        Manifest.load(snapshot)


ENTRY = {"size": 2, "sha256": "0" * 64}
NO_MANIFESTS = {
    "no JSON": b"{",
    "no text": b"\xff\xfe",
    "a list": b"[]",
    "no files": b'{"format": 1, "files": {}}',
    "files in a list": b'{"format": 1, "files": ["README.md"]}',
    "another format": b'{"format": 2, "files": {"README.md": {}}}',
    "deep": b'{"format": 1, "files": ' + b"[" * 200_000,
    "a long number": b'{"format": 1' + b"0" * 10_000 + b"}",
    "huge": b" " * (LARGEST + 1),
    **{
        f"a file {name!r}": json.dumps({"format": 1, "files": {name: ENTRY}}).encode()
        for name in (
            "../outside.json",
            "/etc/passwd.txt",
            "parts/../../outside.json",
            "C:\\windows.json",
            "parts\\..\\..\\x.json",
            "~/x.json",
            "",
            ".",
            "parts//one.json",
            ".hidden.json",
            "model.bin",
            "loader.py",
            "weights.ckpt",
            "weights.pt",
            "a\nb.json",
            "x" * 300 + ".json",
            MANIFEST,
        )
    },
    **{
        f"an entry {entry!r}": json.dumps({"format": 1, "files": {"README.md": entry}}).encode()
        for entry in (None, 3, {}, ENTRY | {"size": "2"}, ENTRY | {"size": -1}, ENTRY | {"sha256": "0"}, {"size": 2})
    },
}


@pytest.mark.parametrize("name", NO_MANIFESTS)
def test_what_is_no_manifest_is_refused_in_one_sentence(folder: Path, name: str) -> None:
    (folder / MANIFEST).write_bytes(NO_MANIFESTS[name])
    with pytest.raises(RequestError, match="is no manifest") as caught:
        Manifest.load(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_configuration_of_absurd_size_is_refused_unread(folder: Path) -> None:
    with (folder / "parts/one.json").open("r+b") as file:
        file.truncate(LARGEST_JSON + 1)
    Manifest.of(folder).save()
    with pytest.raises(RequestError, match=r"parts/one\.json' which is larger"):
        Manifest.load(folder)


@given(st.text(max_size=30))
def test_no_accepted_name_leads_out(name: str) -> None:
    if NAME.fullmatch(name):
        root = Path("/bundle")
        assert (root / name).resolve().is_relative_to(root)
        assert (root / name).resolve() != root


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "~/x", "..", "../x", "a/../../b", "a\\..\\b", {"x": [1, {"y": "/etc"}]}, ["..", "fine"]]
)
def test_paths_that_lead_out_are_found_in_json(path: Any) -> None:
    assert list(paths_in({"a": 1, "b": [None, True, path]}))
    assert not list(paths_in({"a": "owner/name", "b": ["minilm", "1..2", "a/b"], "c": 0.5}))
