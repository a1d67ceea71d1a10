"""`python -m aptp`: the command line."""

from __future__ import annotations

from aptp.cli import main

main()
