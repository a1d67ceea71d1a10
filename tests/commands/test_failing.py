"""How commands fail, whatever they do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import typer

from aptp.commands.failing import working
from aptp.core.errors import RequestError


@pytest.mark.parametrize(
    ("number", "name", "said"),
    [
        (errno.EACCES, "out/x", r"'out/x' cannot be used: Permission denied\."),
        (errno.EROFS, "out/.record.json.ab12", r"'out' cannot be used: Read-only file system\."),
        (errno.ENOTDIR, "prompts.txt/x", r"'prompts.txt/x' cannot be used: Not a directory\."),
    ],
)
def test_a_place_that_cannot_be_used_is_a_wrong_request(number: int, name: str, said: str) -> None:
    with pytest.raises(RequestError, match=said), working("the run", False):
        raise OSError(number, os.strerror(number), name)


def test_other_errors_are_failed_work(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(typer.Exit) as caught, working("the run", False, tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device", "out/x")
    assert caught.value.exit_code == 1
    assert "add --resume to continue" in capsys.readouterr().err
