"""Train the small CLIP tokenizer: byte-level BPE over scene captions and the names of Unicode symbols.

python benchmarks/embedded/train_tokenizer.py --out DIR
"""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from random import Random

from common import fresh_scenes
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

SEED = 102
MERGES = 640
TOKENS = 32
START, END = "<|startoftext|>", "<|endoftext|>"


def corpus() -> list[str]:
    """Captions of scenes, and the lower-cased names of symbols and pictographs as general English."""
    rng = Random(SEED)
    captions = [scene.caption(rng) for scene in fresh_scenes(rng, 4000)]
    names = (
        unicodedata.name(chr(point), "")
        for point in range(0x2000, 0x1FB00)
        if unicodedata.category(chr(point)) in ("So", "Sm", "Sk")
    )
    english = sorted({name.lower() for name in names if name and not name.startswith(("CJK", "YI ", "BRAILLE"))})
    return captions + english


def byte_alphabet() -> list[str]:
    """Every byte as a piece inside a word and as a piece that ends one, in CLIP's order."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return alphabet + [f"{letter}</w>" for letter in alphabet]


def learn() -> CLIPTokenizer:
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=512 + MERGES,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(corpus(), trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]][:MERGES]
    pieces = [START, END, *byte_alphabet(), *("".join(pair) for pair in merges)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def tokenizer(work: Path) -> CLIPTokenizer:
    """The tokenizer of a working folder, learned at the first call: text towers are bound to it from then on."""
    folder = work / "tokenizer"
    if not folder.exists():
        learn().save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)
