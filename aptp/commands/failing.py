"""How commands fail: one sentence on standard error, exit status 1 for failed work and 2 for a wrong request."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from aptp.core.errors import RequestError, gist
from aptp.core.launched import rank
from aptp.core.text import printable

UsageError: Any = typer.BadParameter.__base__
Debug = Annotated[bool, typer.Option("--debug", envvar="APTP_DEBUG", help="Show where an unexpected error came from.")]
INTERRUPTED = 130
BARRED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}
"""What the system says of a place where nothing can be read or written."""


class Commands(TyperGroup):
    """The root command: refuses wrong requests, typer's own included, in one sentence and with exit status 2."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            status = super().main(*args, **kwargs | {"standalone_mode": False})
        except UsageError as error:
            text = error.format_message().rstrip(".")
            help_at = f"; see {error.ctx.command_path} --help" if error.ctx else ""
            status = _complain(f"{text[0].lower()}{text[1:]}{help_at}.", 2)
        except RequestError as error:
            status = _complain(str(error), 2)
        except typer.Abort:
            status = INTERRUPTED
        sys.exit(status)


@contextmanager
def checking() -> Iterator[None]:
    """A body that checks a request: any `ValueError` in it means that the request was wrong."""
    try:
        yield
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError(gist(error)) from error


@contextmanager
def working(what: str, debug: bool, kept: Path | None = None) -> Iterator[None]:
    """A body that does `what` was asked; `kept` is the folder from which it could go on after it failed."""
    try:
        yield
    except (RequestError, typer.Exit):
        raise
    except KeyboardInterrupt as error:
        raise typer.Exit(_complain(f"{what} was stopped{_hint(kept)}", INTERRUPTED)) from error
    except Exception as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, OSError) and error.errno in BARRED and error.filename:
            raise RequestError(_barred(error)) from error
        said = f"{what} failed: {type(error).__name__}: {gist(error)}"
        if hint := _hint(kept):
            said = said.rstrip(".") + hint
        raise typer.Exit(_complain(said, 1)) from error


def _barred(error: OSError) -> str:
    """What cannot be reached; of a file that was to be renamed, its folder."""
    path = Path(os.fsdecode(error.filename))
    return f"{str(path.parent if path.name.startswith('.') else path)!r} cannot be used: {error.strerror}."


def _complain(text: str, status: int) -> int:
    who = f"aptp, process {rank()}" if rank() else "aptp"
    typer.echo(f"{who}: {printable(text)}", err=True)
    return status


def _hint(kept: Path | None) -> str:
    return f"; what was computed is kept in {kept}, add --resume to continue" if kept and kept.is_dir() else ""
