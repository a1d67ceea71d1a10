"""The store of encoded rows: what is read is what was encoded, whoever encoded it, was killed, or damaged it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aptp.core import cache
from aptp.core.cache import Encoded, Table, key_of
from aptp.core.progress import Quiet

WIDTH = 8
SHARD_BYTES = 3 * (16 + 4 * WIDTH * 2)
"""Two chunks of two rows."""
PATIENCE = 120


class Encoder:
    """Rows that tell their item; keeps what it was asked for."""

    def __init__(self, broken: Sequence[str] = (), seconds: float = 0.0) -> None:
        self.broken, self.seconds, self.asked = broken, seconds, []

    def table(self, folder: Path, items: Sequence[str], chunk: int = 2) -> Table:
        def encode(places: list[int]) -> Encoded:
            time.sleep(self.seconds)
            self.asked += [items[place] for place in places]
            good = [items[place] for place in places if items[place] not in self.broken]
            broken = {place: f"{items[place]} is broken" for place in places if items[place] in self.broken}
            return Encoded({"a": values(good, 1), "b": values(good, 2).view(-1, 2, WIDTH // 2)}, broken)

        return Table(folder, [key_of(item) for item in items], encode, chunk, "encoding", Quiet())


def values(items: Sequence[str], what: int) -> torch.Tensor:
    return torch.tensor([[hash_of(item) * what + column for column in range(WIDTH)] for item in items]).float()


def hash_of(item: str) -> int:
    return key_of(item)[0]


def filled(folder: Path, items: Sequence[str], encoder: Encoder | None = None) -> Table:
    table = (encoder or Encoder()).table(folder, items)
    table.fill()
    return table


def check(table: Table, items: Sequence[str]) -> None:
    rows = table.whole()
    assert torch.equal(rows["a"], values(items, 1))
    assert torch.equal(rows["b"], values(items, 2).view(-1, 2, WIDTH // 2))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def names(count: int) -> list[str]:
    return [f"item {i}" for i in range(count)]


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SHARD_BYTES", SHARD_BYTES)


@given(st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=12), min_size=1, max_size=4), st.data())
def test_rows_are_those_of_their_items_whoever_encoded_them(
    tmp_path_factory: pytest.TempPathFactory, lists: list[list[int]], data: st.DataObject
) -> None:
    folder, encoder = tmp_path_factory.mktemp("cache"), Encoder()
    for numbers in lists:
        items = [f"item {i}" for i in numbers]
        table = filled(folder, items, encoder)
        check(table, items)
        index = data.draw(st.lists(st.integers(0, len(items) - 1), min_size=1))
        assert torch.equal(table[torch.tensor(index)]["a"], values([items[i] for i in index], 1))
    assert len(encoder.asked) == len(set(encoder.asked)), "nothing is encoded twice"


def test_shards_are_of_bounded_size(tmp_path: Path) -> None:
    check(filled(tmp_path, names(9)), names(9))
    assert len(shards(tmp_path)) == 3, "4, 4 and 1 rows"


def test_slow_work_is_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SHARD_SECONDS", 0.0)
    filled(tmp_path, names(8))
    assert len(shards(tmp_path)) == 4, "one a chunk"


def test_items_without_a_row_are_remembered(tmp_path: Path) -> None:
    items = names(7)
    broken = [items[0], items[3], items[6]]
    for encoder in (Encoder(broken), Encoder()):
        table = filled(tmp_path, items, encoder)
        assert table.broken == {place: f"item {place} is broken" for place in (0, 3, 6)}
        assert not table.missing
        assert torch.equal(table[torch.tensor([5, 1])]["a"], values([items[5], items[1]], 1))
        with pytest.raises(OSError, match="item 3 is broken"):
            table[torch.tensor([3])]
    assert not encoder.asked


def cut(content: bytes) -> bytes:
    return content[:-7]


def empty(content: bytes) -> bytes:
    return b""


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def length(content: bytes) -> bytes:
    return flipped(content, 0)


def header(content: bytes) -> bytes:
    return content.replace(b'"F32"', b'"F3Z"', 1)


def at(content: bytes, share: float) -> bytes:
    first = 8 + int.from_bytes(content[:8], "little")
    return flipped(content, int(first + share * (len(content) - 1 - first)))


def checksum(content: bytes) -> bytes:
    return at(content, 0)


def value(content: bytes) -> bytes:
    return at(content, 0.5)


def key(content: bytes) -> bytes:
    return at(content, 1)


DAMAGES = [cut, empty, length, header, checksum, value, key]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_encoded_anew_and_no_other(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    items, encoder = names(12), Encoder()
    filled(tmp_path, items)
    before = {path: path.read_bytes() for path in shards(tmp_path)}
    path = list(before)[1]
    path.unlink()  # what was read before is still mapped
    path.write_bytes(damage(before[path]))
    table = filled(tmp_path, items, encoder)
    check(table, items)
    assert len(encoder.asked) == 4
    assert {path: path.read_bytes() for path in shards(tmp_path)} == before, "the same bits"


@pytest.mark.parametrize("damage", [checksum, value, key])
def test_damage_is_noticed_as_rows_are_read(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    items, encoder = names(12), Encoder()
    table = filled(tmp_path, items, encoder)
    for path in shards(tmp_path):
        content = damage(path.read_bytes())
        with path.open("r+b") as file:  # in place, under the map
            file.write(content)
    check(table, items)
    assert sorted(encoder.asked) == sorted(2 * items)
    check(Encoder(items).table(tmp_path, items), items)


@pytest.mark.parametrize("damage", [None, cut, value])
def test_a_shard_that_goes_away_before_it_is_read_is_encoded_anew(
    tmp_path: Path, damage: Callable[[bytes], bytes] | None
) -> None:
    items, encoder = names(12), Encoder()
    table = filled(tmp_path, items, encoder)
    path = shards(tmp_path)[1]
    content = path.read_bytes()
    path.unlink()
    if damage:
        path.write_bytes(damage(content))
    check(table, items)
    assert len(encoder.asked) == 16
    assert path.read_bytes() == content


def test_few_shards_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: weakref.WeakSet[cache._Shard] = weakref.WeakSet()

    class Watched(cache._Shard):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            opened.add(self)

    monkeypatch.setattr(cache, "_Shard", Watched)
    monkeypatch.setattr(cache, "OPEN", 2)
    items = names(40)
    table = filled(tmp_path, items)
    assert len(shards(tmp_path)) == 10
    assert not opened, "finding maps none"
    for _ in range(2):
        check(table, items)
        assert len(opened) == 2
    index = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(table[index]["a"], values([items[i] for i in index], 1))
    assert len(opened) == 2


def test_a_shard_that_cannot_be_read_now_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items, encoder = names(4), Encoder()
    filled(tmp_path, items)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "safe_open", raising(PermissionError("not now")))
        with pytest.raises(PermissionError):
            encoder.table(tmp_path, items)
    check(encoder.table(tmp_path, items), items)


def raising(error: Exception) -> Callable[..., None]:
    def fail(*args: object) -> None:
        raise error

    return fail


def test_another_process_may_have_mended_it(tmp_path: Path) -> None:
    items, encoder = names(4), Encoder()
    table = filled(tmp_path, items)
    (path,) = shards(tmp_path)
    content = path.read_bytes()
    path.write_bytes(value(content))
    reading = encoder.table(tmp_path, items)
    path.unlink()
    path.write_bytes(content)
    check(reading, items)
    check(table, items)
    assert not encoder.asked


def test_a_disk_that_keeps_nothing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = filled(tmp_path, names(2))
    monkeypatch.setattr(cache, "_checksums", lambda rows: torch.rand(len(rows[cache.KEY])))  # never the same
    with pytest.raises(OSError, match=r"safetensors' is damaged as soon as it is written: check the disk"):
        table.whole()


OTHER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_cache

test_cache.cache.SHARD_BYTES = test_cache.SHARD_BYTES
encoder, items = test_cache.Encoder(seconds={seconds}), test_cache.names({count})
print("ready", flush=True)
sys.stdin.readline()
test_cache.check(test_cache.filled(Path({folder!r}), items, encoder), items)
print(len(encoder.asked))
"""


@contextmanager
def others(folder: Path, count: int, seconds: float, processes: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that fill a table of so many items, all begun at once."""
    script = OTHER.format(tests=str(Path(__file__).parent), folder=str(folder), count=count, seconds=seconds)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([sys.executable, "-c", script], **pipes) for _ in range(processes)]
    try:
        for process in started:
            assert process.stdout.readline() == "ready\n"
        for process in started:
            process.stdin.write("\n")
            process.stdin.flush()
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_what_was_killed_goes_on_after_its_last_shard(tmp_path: Path) -> None:
    count, folder, whole = 40, tmp_path / "killed", tmp_path / "whole"
    with others(folder, count, seconds=0.05, processes=1) as (process,):
        deadline = time.monotonic() + PATIENCE
        while len(shards(folder)) < 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
    done = len(shards(folder))
    assert 3 <= done < count // 4
    (folder / ".0123.safetensors.x").write_bytes(b"half a shard")  # what it leaves if it was writing one
    encoder = Encoder()
    check(filled(folder, names(count), encoder), names(count))
    assert len(encoder.asked) == count - 4 * done
    filled(whole, names(count))
    assert [(p.name, p.read_bytes()) for p in shards(folder)] == [(p.name, p.read_bytes()) for p in shards(whole)]
    assert not list(folder.glob(".*.safetensors.*"))


def test_of_processes_at_once_one_encodes(tmp_path: Path) -> None:
    with others(tmp_path, count=20, seconds=0.02, processes=2) as processes:
        encoded = [int(process.communicate(timeout=PATIENCE)[0]) for process in processes]
    assert sorted(encoded) == [0, 20]
