from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from sentence_transformers import SentenceTransformer

from aptp.core.encoder import PromptEncoder
from aptp.core.errors import RequestError
from aptp.plugins.encoders.minilm import PACKAGE, MiniLM, package_folder

TEXTS = ["a red star", "", "two blue circles above a green square", "the word STOP", "étoile 星 🌟", "a red star"]
LONG = "a very long prompt about many things " * 100


@pytest.fixture(scope="module")
def encoder() -> MiniLM:
    return MiniLM(MiniLM.Options(max_tokens=32))


def test_equals_sentence_transformers(encoder: MiniLM):
    theirs = SentenceTransformer(str(package_folder()), device="cpu").encode(TEXTS, convert_to_tensor=True)
    ours = encoder.encode(TEXTS)
    assert isinstance(encoder, PromptEncoder)
    assert ours.shape == (len(TEXTS), 384)
    assert (ours.dtype, ours.device.type, ours.requires_grad) == (torch.float32, "cpu", False)
    torch.testing.assert_close(ours, torch.nn.functional.normalize(theirs, dim=-1), atol=1e-5, rtol=0)


def test_an_embedding_has_unit_length_and_does_not_depend_on_its_batch(encoder: MiniLM):
    batch = [*TEXTS, LONG, *(f"picture number {i}" for i in range(40))]
    together = encoder.encode(batch)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(len(batch)))
    for i in (0, 1, 6, 46):
        torch.testing.assert_close(encoder.encode([batch[i]])[0], together[i], atol=1e-6, rtol=0)
    assert encoder.encode([]).shape == (0, 384)


def test_long_texts_are_cut(encoder: MiniLM):
    words = LONG.split()
    cut, whole, short = encoder.encode([" ".join(words[:30]), LONG, " ".join(words[:10])])
    torch.testing.assert_close(cut, whole, atol=1e-6, rtol=0)
    assert (cut - short).norm() > 0.01


def test_never_longer_than_the_model_allows(encoder: MiniLM):
    longer = MiniLM(MiniLM.Options(max_tokens=100_000))
    assert longer._sentences.tokens == 256
    assert longer.encode([LONG]).isfinite().all()
    assert encoder.fingerprint() == MiniLM(MiniLM.Options(max_tokens=32)).fingerprint() != longer.fingerprint()


def test_too_few_tokens():
    with pytest.raises(RequestError, match="max_tokens is 2; give at least 3"):
        MiniLM(MiniLM.Options(max_tokens=2))


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("aptp.plugins.encoders.minilm.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=PACKAGE):
        MiniLM(MiniLM.Options())


def test_the_package_is_not_imported():
    call = "from aptp.plugins.encoders.minilm import package_folder; package_folder()"
    code = f"import sys; {call}; assert {PACKAGE!r} not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
