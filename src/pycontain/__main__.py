"""`python -m pycontain` is the `pycontain` command."""

from __future__ import annotations

from pycontain.cli import main

main()
