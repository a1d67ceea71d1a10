"""Why a prompt goes where it goes, against leaving words out by hand and against plain cosines."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import aptp
from aptp.bundle import load_bundle
from aptp.core.errors import RequestError
from aptp.explain import explain
from aptp.host import default_host
from aptp.neighbours import Neighbours
from aptp.routing import check_prompts

PROMPTS = ["two red stars above a blue ring", 'the word "STOP"', "dots", "a  grey\tgradient"]


@pytest.fixture(scope="module")
def bundle(finished):
    return load_bundle(finished.out, default_host())


@pytest.fixture(scope="module")
def pipe(finished):
    return aptp.load(finished.out, device="cpu")


def test_words_are_weighed_by_leaving_them_out(pipe) -> None:
    for why, prompt in zip(pipe.explain(PROMPTS), PROMPTS, strict=True):
        words = prompt.split()
        assert why.route.prompt == prompt
        assert sorted((word.place, word.text) for word in why.words) == list(enumerate(words))
        assert [word.lost for word in why.words] == sorted((word.lost for word in why.words), reverse=True)
        for word in why.words if len(words) > 1 else ():
            (rest,) = pipe.route(" ".join(words[: word.place] + words[word.place + 1 :]))
            assert word.expert == rest.expert
            moved = rest.expert != why.route.expert
            assert (word.lost > why.route.margin) == moved
            if not moved:
                assert word.lost == pytest.approx(why.route.margin - rest.margin, abs=1e-5)


def test_routes_are_those_that_serve(pipe) -> None:
    assert [why.route.expert for why in pipe.explain(PROMPTS)] == [route.expert for route in pipe.route(PROMPTS)]
    assert pipe.explain(PROMPTS[0])[0].route.prompt == PROMPTS[0]


def test_the_nearest_are_the_nearest_training_prompts(bundle, finished) -> None:
    lines = (finished.out / "data/train.jsonl").read_text().splitlines()
    captions = sorted({json.loads(line)["caption"] for line in lines})
    assert sorted(Neighbours.of(bundle).prompts.text) == captions
    cosines = bundle.encoder.encode(PROMPTS) @ bundle.encoder.encode(captions).T
    for why, row in zip(explain(bundle, PROMPTS), cosines, strict=True):
        values, places = row.topk(3)
        assert [near.similarity for near in why.nearest] == pytest.approx(values.tolist(), abs=2e-3)
        assert why.nearest[0].prompt == captions[places[0]] or row[places[0]] - row[places[1]] < 2e-3
    (own,) = explain(bundle, [captions[0]])
    assert (own.nearest[0].prompt, own.nearest[0].expert) == (captions[0], own.route.expert)


def test_only_the_first_words_of_a_long_prompt_are_weighed(bundle) -> None:
    (why,) = explain(bundle, ["star " * 100 + "end"])
    assert len(why.words) == 64


def test_one_expert_has_no_deciding_words(finished) -> None:
    static = load_bundle(finished.out / "baselines/magnitude", default_host())
    (why,) = explain(static, PROMPTS[:1])
    assert (why.words, len(why.nearest)) == ([], 3)


def test_a_run_without_training_prompts_explains_by_words(finished, tmp_path: Path) -> None:
    shutil.copytree(finished.out / "router", tmp_path / "router")
    file = tmp_path / "router/training.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    cut = load_bundle(tmp_path, default_host())
    with pytest.raises(RequestError, match="is damaged"):
        explain(cut, PROMPTS)
    file.unlink()
    (why,) = explain(cut, PROMPTS[:1])
    assert why.nearest == []
    assert why.words


def test_what_is_kept_is_bounded_and_readable(finished) -> None:
    with safe_open(finished.out / "router/training.safetensors", "pt") as kept:
        embeds = kept.get_tensor("embeds")
        texts = json.loads(kept.metadata()["prompts"])
    assert embeds.dtype == torch.float16
    assert len(texts) == len(embeds) == len(set(texts)) <= 4096
    check_prompts(texts)


@pytest.mark.parametrize(("asked", "words"), [([], "no prompt"), ([" "], "is empty"), (["\ud83d"], "broken Unicode")])
def test_bad_prompts_are_refused(bundle, asked: list[str], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        explain(bundle, asked)


def test_an_explanation_is_plain_data(bundle) -> None:
    json.dumps([dataclasses.asdict(why) for why in explain(bundle, PROMPTS)])
