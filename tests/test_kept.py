"""Whether a request is for the run that a configuration was kept of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from aptp.config import RunConfig, load_config
from aptp.core.errors import RequestError
from aptp.host import default_host
from aptp.kept import check_folder, same_request


def asked(**flags: object) -> RunConfig:
    return load_config(flags=flags).resolved(default_host()).settled()


def kept_by_an_earlier_version(config: RunConfig, *unknown: str) -> dict[str, Any]:
    kept = config.model_dump(mode="json")
    for name in unknown:
        part, key = name.split(".")
        del kept[part][key]
    return kept


def test_a_run_goes_on_whatever_host_knows_its_plugins(tmp_path: Path) -> None:
    config = load_config(flags={"router": "of_another_host"})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    check_folder(config, tmp_path, resume=True)
    with pytest.raises(RequestError, match=r"another configuration \(which this version cannot read\)"):
        check_folder(config.model_copy(update={"seed": 1}), tmp_path, resume=True)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"seed": 1}, "seed is 0 there, not 1"),
        ({"recover": {"rate": 0.1}}, "recover.rate is 0.0005 there, not 0.1"),
        ({"router": "kmeans"}, 'router.name is "contrastive" there, not "kmeans"'),
        ({"search": {"start": None}}, 'search.start is {"name": "taylor", "batches": 8} there, not null'),
    ],
)
def test_a_refusal_says_what_differs(tmp_path: Path, changed: dict, told: str) -> None:
    (tmp_path / "config.yaml").write_text(asked().to_yaml())
    with pytest.raises(RequestError) as refused:
        check_folder(asked(**changed), tmp_path, resume=True)
    assert told in str(refused.value)


def test_what_an_earlier_version_did_not_know_is_what_it_did(tmp_path: Path) -> None:
    """Its run goes on as it was begun, and not with a default that came later."""
    begun = asked(recover={"restart": True}, search={"start": None})
    kept = kept_by_an_earlier_version(begun, "recover.restart", "search.start", "recover.guidance")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(kept))
    check_folder(begun, tmp_path, resume=True)
    for other in (asked(recover={"restart": True}), asked(search={"start": None})):
        with pytest.raises(RequestError, match="belongs to another configuration"):
            check_folder(other, tmp_path, resume=True)


@pytest.mark.parametrize(("pruner", "searched"), [(None, True), ("learned", True), ("taylor", False)])
def test_codes_were_searched_at_the_rate_of_all_else(pruner: str | None, searched: bool) -> None:
    then, now = asked(pruner=pruner, search={"code_rate": None}), asked(pruner=pruner)
    kept = kept_by_an_earlier_version(then, "search.code_rate")
    assert same_request(then, kept)
    assert same_request(now, kept) == (not searched), "where nothing is searched it is nothing"


@pytest.mark.parametrize(
    "flags",
    [
        {"recover": {"joint": 0.0}},
        {"recover": {"joint": 1.0}},
        {"recover": {"schedule": "constant"}},
        {"experts": 1},
        {"pruner": "taylor"},
    ],
)
def test_an_earlier_run_in_which_nothing_began_anew_is_the_same_one(flags: dict[str, Any]) -> None:
    config = asked(**flags)
    assert same_request(config, kept_by_an_earlier_version(config, "recover.restart"))
    assert not same_request(asked(), kept_by_an_earlier_version(asked(), "recover.restart"))
