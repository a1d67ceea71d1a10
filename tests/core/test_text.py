"""Normalised texts and their hashes."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from aptp.core.text import hashed, normalised, printable


@given(text=st.text(), pad=st.sampled_from([" ", "\t", "\n  ", "\u00a0", "\u3000"]))
@example(text="Straße ﬁn\u0301 Ｓ", pad=" ")
def test_normalising_once_is_enough_and_space_around_is_nothing(text: str, pad: str) -> None:
    once = normalised(text)
    assert normalised(once) == once
    assert normalised(f"{pad}{text}{pad}") == once


@pytest.mark.parametrize(
    "other",
    ["A red\tSTAR", "a  red star\n", "ａ ｒｅｄ ｓｔａｒ", "A\u00a0Red Star"],
    ids=["case", "space", "width", "no-break"],
)
def test_one_text_in_several_spellings(other: str) -> None:
    assert normalised(other) == "a red star"
    assert hashed(other) == hashed("a red star")


def test_hashes_are_even_and_another_salt_gives_unrelated_ones() -> None:
    drawn = torch.tensor([[hashed(f"prompt {i}", salt) for salt in "ab"] for i in range(4000)])
    assert ((drawn >= 0) & (drawn < 1)).all()
    counts = (drawn * 10).long()
    for column in counts.T:
        assert (column.bincount(minlength=10) - 400).abs().max() < 80  # four standard deviations
    assert abs(float(torch.corrcoef(drawn.T)[0, 1])) < 0.06


def test_the_hash_is_the_same_on_every_machine() -> None:
    assert hashed("A red star") == int(hashlib.sha256(b"/a red star").hexdigest()[:12], 16) / 16**12


def test_what_a_terminal_would_obey_is_spelt_out() -> None:
    assert printable("a \x1b[2J\x7f\x85\u202e\ud83d b") == r"a \u001b[2J\u007f\u0085\u202e\ud83d b"
    shown = "a\tb\n\u00e4 \u200d\u200c \U0001f44d \u0646"
    assert printable(shown) == shown
