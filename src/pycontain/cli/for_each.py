"""One action on every container that was named, and the names of those that it worked on."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pycontain.cli.errors import describe, exit_code_of
from pycontain.errors import PycontainError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pycontain.cli.app import Context
    from pycontain.runtime.container import Container

__all__ = ["for_each"]


def for_each(
    context: Context,
    references: Sequence[str],
    action: Callable[[Container], object],
    *,
    echo: bool = True,
) -> int:
    """Do `action` to each container, printing each reference as docker does.

    One that fails is said on stderr and does not stop the others. Returns the last failure's exit
    code, 0 without any.
    """
    engine = context.engine()
    code = 0
    for reference in references:
        try:
            action(engine.get(reference))
        except PycontainError as error:
            print(f"pycontain: {reference}: {describe(error)}", file=sys.stderr)
            code = exit_code_of(error)
        else:
            if echo:
                print(reference, flush=True)
    return code
