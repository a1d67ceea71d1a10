"""`aptp recover-expert`, which people do not call."""

from __future__ import annotations

from pathlib import Path

from aptp.commands.failing import Debug, checking, working


def recover_expert(out: Path, index: int, debug: Debug = False) -> None:
    """Carry out one expert's own phase of recovery for the run in OUT; `aptp run --executor ray` starts it."""
    with working(f"the recovery of expert {index}", debug):
        with checking():
            from aptp.host import default_host

            host = default_host()
        from aptp import harness
        from aptp.terminal import Terminal

        harness.recover_expert(out, index, host=host, progress=Terminal())
