"""Why a prompt goes where it goes: the training prompts it is like, and the words that decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from aptp.bundle import Bundle
from aptp.core.router import PromptBatch, serve
from aptp.neighbours import Neighbours
from aptp.routing import Route, read, route

NEAREST = 3
MOST_WORDS = 64
"""Only so many words of a prompt are left out in turn, its first; encoders read few more."""


@dataclass(frozen=True)
class Neighbour:
    """A training prompt, its cosine similarity to the prompt, and the expert that it goes to."""

    prompt: str
    similarity: float
    expert: int


@dataclass(frozen=True)
class Word:
    """A word of a prompt, and where the prompt would go without it."""

    text: str
    place: int
    """In the prompt, from 0."""
    lost: float
    """What the prompt's expert loses of its lead without the word; negative for a word that speaks for another."""
    expert: int
    """That serves the rest of the prompt."""


@dataclass(frozen=True)
class Explanation:
    """A route, the nearest training prompts, and the words, those that decide most first."""

    route: Route
    nearest: list[Neighbour]
    """Empty where the run keeps no training prompts."""
    words: list[Word]
    """Divided by white space; empty where there is one expert."""


@torch.no_grad()
def explain(bundle: Bundle, prompts: Sequence[str]) -> list[Explanation]:
    """Each prompt's route with its reasons.

    A word's weight is found by leaving it out, one at a time: words that decide only together are not found so.

    Raises:
        RequestError: for prompts that cannot be served, or damaged files.
    """
    batch = read(bundle, prompts)
    routes = route(bundle, batch)
    nearest, words = _nearest(bundle, batch), _words(bundle, routes)
    return [Explanation(*each) for each in zip(routes, nearest, words, strict=True)]


def _nearest(bundle: Bundle, batch: PromptBatch) -> list[list[Neighbour]]:
    known = Neighbours.of(bundle)
    if known is None:
        return [[] for _ in batch.text]
    similarities, places = known.nearest(batch.embeds, NEAREST)
    found = places.unique()
    experts = serve(bundle.router.scores(known.prompts[found]), bundle.bias)
    expert_of = dict(zip(found.tolist(), experts.tolist(), strict=True))
    return [
        [Neighbour(known.prompts.text[i], s, expert_of[i]) for s, i in zip(row, of, strict=True)]
        for row, of in zip(similarities.tolist(), places.tolist(), strict=True)
    ]


def _words(bundle: Bundle, routes: Sequence[Route]) -> list[list[Word]]:
    if len(bundle.fractions) == 1:
        return [[] for _ in routes]
    split = [r.prompt.split() for r in routes]
    rests = [
        " ".join(words[:place] + words[place + 1 :]) for words in split for place in range(min(len(words), MOST_WORDS))
    ]
    biased = bundle.router.scores(PromptBatch(rests, bundle.encoder.encode(rests))).double() + bundle.bias
    rows = iter(biased.cpu())
    answers = []
    for r, words in zip(routes, split, strict=True):
        weighed = []
        for place, (text, scores) in enumerate(zip(words, islice(rows, min(len(words), MOST_WORDS)), strict=False)):
            others = scores.clone()
            others[r.expert] = -torch.inf
            lost = r.margin - float(scores[r.expert] - others.max())
            weighed.append(Word(text, place, lost, int(scores.argmax())))
        answers.append(sorted(weighed, key=lambda word: -word.lost))
    return answers
