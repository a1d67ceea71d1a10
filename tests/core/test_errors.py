"""What is said of other libraries' errors."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from aptp.core.errors import gist


class Pair(BaseModel):
    left: int
    right: list[int] = []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("\n  it is so  \nand so"), "it is so"),
        (ValueError(), "ValueError"),
    ],
)
def test_the_first_line(error: Exception, said: str) -> None:
    assert gist(error) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"left": 1, "right": [1, "x"]}', "right.1: Input should be a valid integer"),
        ("{}", "left: Field required"),
        ('{"left', "Invalid JSON: EOF while parsing a string"),
    ],
)
def test_of_pydantic_what_is_wrong_and_where(text: str, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Pair.model_validate_json(text)
    assert gist(caught.value).startswith(said)
    assert "\n" not in gist(caught.value)
