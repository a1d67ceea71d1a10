"""What two runs must share to stand in one table: the model, the data, what is measured, and how much is trained."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Mapping, Sequence

from aptp.core.errors import RequestError
from aptp.core.record import Record

Protocol = tuple[tuple[str, str], ...]
"""Names and values, as texts."""

PREFIXES = ("recover.weights.", "adapt.", "distill.")
KEYS = ("prepare.flips", "recover.steps", "recover.per", "recover.batch", "recover.caption_dropout", "recover.guidance")
MEASURED = ("data.", "evaluate.prompts", "evaluate.steps", "evaluate.guidance", "evaluate.precision", "evaluate.exam")
DATA = ("fingerprint", "training_pictures", "validation_pictures")
"""What runs must share of their records' `data`; a list of pictures that a seed drew differs between seeds."""
NAMED = ("prepare.", "recover.", "adapt.", "distill.", "evaluate.")
"""Starts of the names of differences that are short enough to stand in a method's name."""
SHOWN = 4
"""Differences that a refusal names."""


def belongs_to_protocol(key: str) -> bool:
    """Whether a setting of the configuration is part of the protocol, and so of no method's name."""
    return key in KEYS or key.startswith(PREFIXES)


def protocol_of(record: Record, config: Mapping[str, str]) -> Protocol:
    """The protocol of a row with this configuration."""
    found = {"model": record.model or config.get("model", ""), "data": config.get("data", "")}
    found |= {key: value for key, value in config.items() if key.startswith(MEASURED)}
    found |= {f"data.{key}": str(value) for key, value in record.data.items() if key in DATA}
    found |= {"metrics": config.get("metrics", ""), "budget": config.get("budget", "")}
    found |= {k: v for k, v in config.items() if k.startswith("budget.") and k != "budget.target"}
    if record.budget:
        found |= {
            "budget.sample_size": str(record.budget.sample_size),
            "budget.text_tokens": str(record.budget.text_tokens),
        }
    if config.get("adapt.steps", "0") == "0":
        found["adapt.steps"] = "0"
    else:
        found |= {key: value for key, value in config.items() if key.startswith("adapt.")}
    found["recover.steps"] = config.get("recover.steps", "0")
    if found["recover.steps"] != "0":
        found |= {k: v for k, v in config.items() if belongs_to_protocol(k) and not k.startswith("adapt.")}
    return tuple(found.items())


def of_training(key: str) -> bool:
    """Whether a part of the protocol is how models are trained, which is nothing to the dense one as it came."""
    return key.startswith(("prepare.", "recover.", "distill."))


def lettered(protocols: Sequence[Protocol]) -> dict[Protocol, str]:
    """A letter for each protocol, that of the most rows first."""
    names = [*string.ascii_uppercase, *(a + b for a in string.ascii_uppercase for b in string.ascii_uppercase)]
    return dict(zip([protocol for protocol, _ in Counter(protocols).most_common()], names, strict=False))


def differing(protocols: Sequence[Protocol]) -> list[str]:
    """The names of what is not the same in all protocols."""
    tables = [dict(protocol) for protocol in protocols]
    keys = dict.fromkeys(key for table in tables for key in table)
    return [key for key in keys if len({table.get(key) for table in tables}) > 1]


def differences_of(protocols: Mapping[str, Protocol]) -> list[tuple[str, dict[str, str]]]:
    """In what protocols differ: names, and the value for each letter."""
    tables = {letter: dict(protocol) for letter, protocol in protocols.items()}
    keys = differing(list(protocols.values()))
    return [(key, {letter: table.get(key, "–") for letter, table in tables.items()}) for key in keys]


def check_one(protocols: Mapping[Protocol, str]) -> None:
    """Raise `RequestError` where there are several; `protocols` gives a run that follows each."""
    if len(protocols) < 2:
        return
    keys = differing(list(protocols))
    said = []
    for key in keys[:SHOWN]:
        runs: dict[str, str] = {}
        for protocol, run in protocols.items():
            runs.setdefault(dict(protocol).get(key, "not said"), run)
        said.append(f"{key} ({', '.join(f'{value} in {run!r}' for value, run in runs.items())})")
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    raise RequestError(
        f"the runs follow {len(protocols)} protocols, which differ in {'; '.join(said)}{more}; compare runs of one, "
        "or add --mixed."
    )


def named_differences(protocol: Protocol, first: Protocol) -> list[str]:
    """In what a protocol differs from the first, as parts of a method's name."""
    mine = dict(protocol)
    return [f"{key}={mine[key]}" for key in differing([protocol, first]) if key in mine and key.startswith(NAMED)]
