from __future__ import annotations

import io

import pytest
from rich.console import Console

from aptp.terminal import Terminal, duration, show, table


def drawn_by(interval: float = 30.0, **console: object) -> tuple[Terminal, io.StringIO]:
    written = io.StringIO()
    return Terminal(Console(file=written, width=120, **console), interval), written


def test_without_a_terminal_lines_are_sparse() -> None:
    terminal, written = drawn_by()
    with terminal.task("search", 1000) as advance:
        for step in range(1000):
            advance(note=f"loss {step}")
    assert written.getvalue() == "search: 1000/1000, 0:00:00 elapsed, loss 999\n"


def test_without_a_terminal_lines_tell_count_time_left_and_figures() -> None:
    terminal, written = drawn_by(interval=0)
    with terminal.task("search [batch]", 4) as advance:
        advance(note="loss [0.5]")
        terminal.say("warning: [batch, gates]")
        advance(3)
    assert written.getvalue().splitlines() == [
        "search [batch]: 1/4, 0:00:00 elapsed, 0:00:00 left, loss [0.5]",
        "warning: [batch, gates]",
        "search [batch]: 4/4, 0:00:00 elapsed, loss [0.5]",
    ]


def test_a_task_that_fails_tells_how_far_it_came() -> None:
    terminal, written = drawn_by()

    def fail() -> None:
        with terminal.task("search", 4) as advance:
            advance(2)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert written.getvalue().startswith("search: 2/4,")


def test_a_terminal_gets_a_bar_with_count_and_figures() -> None:
    terminal, written = drawn_by(force_terminal=True, force_interactive=True)
    with terminal.task("search", 4) as advance:
        advance(2, "loss [0.5]")
        with terminal.task("inner", 1) as inner:
            inner()
        terminal.say("warning: [batch, gates]")
        advance(2)
    with terminal.task("again", 1) as advance:  # a bar can follow a bar
        advance()
    text = written.getvalue()
    for part in ("search", "4/4", "loss [0.5]", "inner", "warning: [batch, gates]", "again", "1/1"):
        assert part in text


def test_tables_keep_what_looks_like_markup_and_long_texts(capsys: pytest.CaptureFixture[str]) -> None:
    show(table(("prompt", "cost"), [("[red] " + "x" * 300, 0.12345)]), "[bold] line")
    text = capsys.readouterr().out
    assert "[red]" in text
    assert text.count("x") == 300
    assert "0.123" in text
    assert text.endswith("[bold] line\n")


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00:00"), (61, "0:01:01"), (90000, "1 day, 1:00:00")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
