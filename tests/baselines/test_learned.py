"""The learned code is the search's, whatever that finds."""

from __future__ import annotations

import dataclasses

import pytest

from aptp.baselines.learned import LearnedPruner
from aptp.core.architecture import Architecture
from aptp.core.errors import RequestError
from aptp.core.pruner import Pruned, PrunerContext


def test_answers_with_the_search(asked: PrunerContext) -> None:
    found = Pruned(Architecture.random(asked.space), uncalibrated=0.7)
    assert LearnedPruner(LearnedPruner.Options()).prune(dataclasses.replace(asked, search=lambda: found)) is found


def test_refuses_before_it_searches(asked: PrunerContext) -> None:
    context = dataclasses.replace(asked, target=0.05, search=lambda: pytest.fail("it searched"))
    with pytest.raises(RequestError, match="under the floor"):
        LearnedPruner(LearnedPruner.Options()).prune(context)


def test_needs_a_run() -> None:
    with pytest.raises(RequestError, match="a run of the harness can"):
        PrunerContext(None, None, None, 0.5, 0, None).search()
