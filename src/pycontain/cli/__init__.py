"""The `pycontain` command.

`main` is all that the entry point loads. `app` finds the verb in a table of names and imports that
verb's module alone, which declares its options as data (`arguments.Command`) and runs. Nothing
here knows how a container is made: every verb turns words into calls of `engine.Engine`, and what
comes back into lines and an exit code.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process and end the process with its exit code.

    Leaves by `os._exit` once all output is flushed: tearing the interpreter down takes longer than
    a container does, and every container was cleaned up before (`app.run` returned).
    """
    import os
    import sys

    try:
        from pycontain.cli import app

        code = app.run(sys.argv[1:])
    except KeyboardInterrupt:  # while still importing
        code = 130
    code = _flush(code)
    os._exit(code)


def _flush(code: int) -> int:
    """`code` once stdout and stderr are written out; 141, as the shell says, if the reader left."""
    import sys

    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            code = 141
        except (OSError, ValueError):
            code = code or 125
    return code
