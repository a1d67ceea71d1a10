"""The cache of encoded pictures and captions."""

from __future__ import annotations

import copy
import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageOps

from aptp.core import cache
from aptp.core.data import Sample
from aptp.core.errors import RequestError
from aptp.core.files import default_cache
from aptp.core.progress import Quiet
from aptp.harness import data
from aptp.harness.data import Pictures, Preparer, fit
from aptp.harness.measure import _LiveTensors
from aptp.harness.workspace import Workspace


class CountingEncoder:
    """A prompt encoder that counts the texts it was given."""

    def __init__(self) -> None:
        self.texts = 0

    def encode(self, texts: list[str]) -> torch.Tensor:
        self.texts += len(texts)
        return torch.tensor([[len(text), 1.0] for text in texts])

    def fingerprint(self) -> str:
        return "counting"


def picture(name: str, caption: str, opened: list[str], value: int = 200) -> Sample:
    def open_it() -> Image.Image:
        opened.append(name)
        return Image.new("RGB", (20, 30), (value, 0, 0))

    return Sample(name, caption, open_it)


def halves(name: str, opened: list[str], left: str) -> Sample:
    """A picture whose left half is of one colour and the right one black."""

    def open_it() -> Image.Image:
        opened.append(name)
        whole = Image.new("RGB", (32, 32))
        whole.paste(left, (0, 0, 16, 32))
        return whole

    return Sample(name, f"{left} and black", open_it)


def broken(name: str, error: Exception) -> Sample:
    def open_it() -> Image.Image:
        raise error

    return Sample(name, "nothing", open_it)


def latents_of(pictures: Pictures) -> torch.Tensor:
    return pictures.latents_of(torch.arange(len(pictures)))


@pytest.fixture
def make(base: Workspace, tmp_path: Path) -> Callable[[], Preparer]:
    return lambda: Preparer(base.pipeline, base.denoiser, CountingEncoder(), tmp_path / "cache", Quiet())


def test_what_is_cached_is_not_encoded_again(make: Callable[[], Preparer]) -> None:
    opened: list[str] = []
    samples = [picture(f"{i}", f"caption {i % 2}", opened, 50 * i) for i in range(4)]
    first, second = make(), make()
    before = first.pictures(samples, "source", "training")
    assert opened == ["0", "1", "2", "3"]
    assert first.encoder.texts == 2, "captions are encoded once each"
    after = second.pictures(samples, "source", "training")
    assert opened == ["0", "1", "2", "3"]
    assert second.encoder.texts == 0
    assert torch.equal(latents_of(before), latents_of(after))
    assert after.prompts().text == ["caption 0", "caption 1"] * 2
    index = torch.tensor([3, 0])
    assert torch.equal(
        before.text_states(index)["encoder_hidden_states"], after.text_states(index)["encoder_hidden_states"]
    )
    second.pictures(samples, "another source", "training")
    assert len(opened) == 8


def test_latents_are_the_scaled_mode_of_the_vae(make: Callable[[], Preparer], base: Workspace) -> None:
    pictures = make().pictures([picture("a", "red", [])], "source", "training")
    vae = base.pipeline.vae
    pixels = torch.tensor([200 / 127.5 - 1, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    expected = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    torch.testing.assert_close(latents_of(pictures), expected, atol=1e-5, rtol=1e-4)


def test_broken_pictures_are_skipped_and_listed(make: Callable[[], Preparer]) -> None:
    samples = [
        picture("good", "a", []),
        broken("gone", FileNotFoundError("no such file")),
        picture("fine", "b", []),
        broken("odd", ValueError("bad header")),
    ]
    for _ in range(2):  # encoded, then read from the cache
        preparer = make()
        pictures = preparer.pictures(samples, "source", "training")
        assert [sample.id for sample in pictures.samples] == ["good", "fine"]
        assert len(latents_of(pictures)) == len(pictures) == 2
        assert preparer.skipped.keys() == {"gone", "odd"}
        assert "no such file" in preparer.skipped["gone"]


def test_a_picture_with_several_captions_is_encoded_once(make: Callable[[], Preparer]) -> None:
    opened: list[str] = []
    samples = [
        replace(picture(f"{name}#{k}", f"{name} said {k}", opened, value), picture=name)
        for name, value in (("a", 10), ("b", 200))
        for k in range(3)
    ]
    samples.insert(4, replace(broken("c#0", OSError("broken")), picture="c"))
    preparer = make()
    pictures = preparer.pictures(samples, "source", "training")
    assert len(opened) == 2
    assert list(preparer.skipped) == ["c"]
    assert len(pictures) == 6
    assert pictures.prompts().ids == [f"{name}#{k}" for name in "ab" for k in range(3)]
    assert pictures.prompts(torch.tensor([4, 0])).text == ["b said 1", "a said 0"]
    of_a, *_, last_of_b = latents_of(pictures)
    assert torch.equal(pictures.latents_of(torch.tensor([4, 1, 2])), torch.stack([last_of_b, of_a, of_a]))
    of_b = make().pictures(samples[-1:], "source", "training")
    torch.testing.assert_close(last_of_b, latents_of(of_b)[0], atol=1e-5, rtol=1e-4)


def test_none_left_is_refused(make: Callable[[], Preparer]) -> None:
    for _ in range(2):
        with pytest.raises(RequestError, match=r"none of the 2 training pictures can be read; the first: .*broken"):
            make().pictures([broken(name, OSError("broken")) for name in "ab"], "source", "training")


@pytest.mark.parametrize("kind", ["latents", "text", "embeds"])
def test_what_is_damaged_is_made_anew(make: Callable[[], Preparer], kind: str) -> None:
    samples = [picture("a", "x", []), picture("b", "y", [], 10)]
    index = torch.arange(2)
    whole = make().pictures(samples, "source", "training")
    before = whole.text_states(index)
    (file,) = make().cache.glob(f"{kind}-*/*.safetensors")
    content = file.read_bytes()
    value = len(content) - 100  # before the keys
    for damage in (content[:-7], b"", content[:value] + bytes([content[value] ^ 1]) + content[value + 1 :]):
        file.unlink()  # what was read before is still mapped
        file.write_bytes(damage)
        again = make().pictures(samples, "source", "training")
        assert torch.equal(latents_of(again), latents_of(whole))
        assert torch.equal(again.embeds, whole.embeds)
        assert all(torch.equal(states, before[name]) for name, states in again.text_states(index).items())
        assert file.read_bytes() == content


@pytest.mark.parametrize("content", ["of a", None])
@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "not now"), OSError(errno.ENOENT, "not now"), MemoryError("not now")]
)
def test_a_disk_that_is_gone_leaves_no_picture_out(
    make: Callable[[], Preparer], error: Exception, content: str | None
) -> None:
    good = replace(picture("a", "x", []), content=content)
    gone = replace(broken("a", error), content=content)
    with pytest.raises(RuntimeError, match=r"a cannot be read now: .*not now"):
        make().pictures([gone], "source", "training")
    assert make().pictures([good], "source", "training").samples == [good]


def test_a_picture_that_may_not_be_read_is_left_out_of_this_run_alone(make: Callable[[], Preparer]) -> None:
    good = [picture(name, "x", []) for name in "ab"]
    barred = broken("a", PermissionError(errno.EACCES, "not yours"))
    preparer = make()
    assert preparer.pictures([barred, good[1]], "source", "training", flips=True).samples == [good[1]]
    assert "a may not be read: [Errno 13] not yours" in preparer.skipped["a"]
    assert make().pictures(good, "source", "training", flips=True).samples == good
    with pytest.raises(RequestError, match="none of the 1 training pictures can be read; the first: c may not"):
        make().pictures([replace(barred, id="c")], "source", "training")
    assert len(list(make().cache.glob("latents-*/*.safetensors"))) == 4, "nothing is written of it"


def test_a_set_that_changes_keeps_what_it_had(make: Callable[[], Preparer]) -> None:
    opened: list[str] = []
    samples = [replace(picture(name, f"it is {name}", opened), content=f"of {name}") for name in "abc"]
    make().pictures(samples[:2], "source", "training")
    other = replace(samples[0], id="renamed", caption="said otherwise")
    preparer = make()
    preparer.pictures([other, *samples], "another source", "training")
    assert opened == ["a", "b", "c"]
    assert preparer.encoder.texts == 2, "what is said otherwise, and of c"


def test_memory_does_not_grow_with_the_number_of_pictures(
    make: Callable[[], Preparer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "CHUNK", 2)
    monkeypatch.setattr(cache, "SHARD_BYTES", 2 * 4 * 4 * 8**2)

    def peak(count: int) -> int:
        samples = [picture(f"{count} {i}", "red", [], i) for i in range(count)]
        with _LiveTensors() as live:
            pictures = make().latents(samples, "source", "training")
            pictures.of(torch.tensor([0, count - 1]))
        return live.peak

    assert peak(24) <= peak(4) + 8 * 24, "the place of each picture, and no more"


def test_mirror_images_are_encoded_themselves(make: Callable[[], Preparer], base: Workspace) -> None:
    opened: list[str] = []
    samples = [halves(name, opened, left) for name, left in (("a", "red"), ("b", "lime"), ("c", "blue"))]
    plain = make().pictures(samples, "source", "training")
    assert opened == ["a", "b", "c"]
    need = make().need(samples, samples, "source", flips=True)
    assert (need.pictures, need.mirrored, need.captions) == (0, 3, 0)
    assert str(need).startswith("0 pictures, 3 mirror images and 0 captions are to be encoded")
    both = make().pictures(samples, "source", "training", flips=True)
    assert opened == ["a", "b", "c"] * 2, "only what is new is encoded"
    turned = [replace(s, id=f"turned {s.id}", open=lambda s=s: ImageOps.mirror(s.open())) for s in samples]
    sides = torch.stack([latents_of(plain), latents_of(make().pictures(turned, "source", "training"))])
    assert not torch.allclose(sides[0].flip(-1), sides[1], atol=1e-3), "the mirror image of latents is something else"

    index = torch.tensor([2, 0, 1] * 20)
    first, again, other = (both.latents_of(index, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    shows = torch.stack([(first == side[index]).flatten(1).all(1) for side in sides])
    assert torch.equal(shows.sum(0), torch.ones(60).long()), "each sample shows one side"
    assert 15 < shows[1].sum() < 45
    assert torch.equal(latents_of(both), latents_of(plain)), "no side is drawn where nothing is trained"

    generator = torch.Generator().manual_seed(0)
    assert torch.equal(plain.latents_of(index, generator), latents_of(plain)[index])
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(0).get_state()), "nothing was drawn"


def test_a_picture_whose_mirror_image_does_not_open_is_left_out(make: Callable[[], Preparer]) -> None:
    opened: list[str] = []
    samples = [picture(name, "x", opened) for name in "ab"]
    make().latents(samples, "source", "training")
    gone = [replace(samples[0], open=broken("a", OSError("gone")).open), samples[1]]
    preparer = make()
    assert [s.id for s in preparer.latents(gone, "source", "training", flips=True).samples] == ["b"]
    assert "gone" in preparer.skipped["a"]


def test_what_is_to_be_encoded_is_told_with_its_size(make: Callable[[], Preparer]) -> None:
    samples = [picture("a", "x", []), picture("b", "y", []), picture("c", "y", [])]
    before = make().need(samples[:1], samples[1:], "source")
    pictures = make().pictures(samples[:2], "source", "training")
    after, new = (make().need(samples, [], "source", new_text=trained) for trained in (False, True))
    row = latents_of(pictures)[0].nbytes
    texts = sum(states[0].nbytes for states in pictures.text_states(torch.tensor([0])).values())
    assert (before.pictures, before.captions, before.size) == (3, 2, 3 * row + 2 * (texts + 8))
    assert (after.pictures, after.captions, after.size) == (1, 0, row)
    assert (new.pictures, new.captions, new.size) == (1, 2, row + 2 * texts)
    make().pictures(samples, "source", "training")
    assert str(make().need(samples, [], "source")).startswith("all pictures and captions are encoded in")


def test_a_cache_that_does_not_fit_is_refused(make: Callable[[], Preparer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=10**6))
    fits = make().need([picture(f"{i}", "x", []) for i in range(10)], [], "source")
    fits.check()
    with pytest.raises(
        RequestError,
        match=r"2,000 pictures and 1 caption are to be encoded, \d MB in '.*cache', where 1 MB are free: make room, ",
    ):
        make().need([picture(f"{i}", "x", []) for i in range(2000)], [], "source").check()


def test_changed_weights_are_another_key(make: Callable[[], Preparer], base: Workspace) -> None:
    opened: list[str] = []
    samples = [picture("a", "x", opened)]
    make().pictures(samples, "source", "training")
    weight = base.pipeline.vae.encoder.conv_in.weight
    kept = weight.clone()
    try:
        weight.mul_(2)
        make().pictures(samples, "source", "training")
    finally:
        weight.copy_(kept)
    assert len(opened) == 2


def test_another_tokenizer_is_another_key(make: Callable[[], Preparer], base: Workspace) -> None:
    captions = ["a red star"]
    assert make()._text(captions, "text").missing == [0]
    make().text(captions, "training")
    assert make()._text(captions, "text").missing == []
    tokenizer = base.pipeline.tokenizer
    try:
        base.pipeline.tokenizer = copy.deepcopy(tokenizer)
        base.pipeline.tokenizer.add_tokens(["star"])
        assert make()._text(captions, "text").missing == [0]
    finally:
        base.pipeline.tokenizer = tokenizer


def test_pictures_are_cropped_to_a_square() -> None:
    wide = Image.new("RGB", (40, 20), "red")
    wide.paste("blue", (10, 0, 30, 20))
    fitted = fit(Sample("a", "x", lambda: wide), 10)
    assert fitted.size == (10, 10)
    assert all(blue > 230 for _, (_, _, blue) in fitted.getcolors()), "the red sides are gone"


def test_a_picture_that_a_plugin_left_as_it_was_becomes_rgb() -> None:
    clear = Image.new("RGBA", (12, 12), (0, 0, 0, 0))
    assert fit(Sample("a", "x", lambda: clear), 4).getpixel((0, 0)) == (255, 255, 255)


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.delenv("APTP_CACHE", raising=False)
    assert default_cache() == Path("/x/aptp")
    monkeypatch.setenv("APTP_CACHE", "/y")
    assert default_cache() == Path("/y")


def test_a_cache_that_is_named_needs_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setenv("APTP_CACHE", "/y")
    assert default_cache() == Path("/y")
    monkeypatch.delenv("APTP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_cache() == Path("/x/aptp")
    monkeypatch.delenv("XDG_CACHE_HOME")
    with pytest.raises(RequestError, match="no home folder to keep the cache in; name a folder with APTP_CACHE"):
        default_cache()
