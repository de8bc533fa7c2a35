"""`cp`: files between the host and a container, running or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pycontain.cli.arguments import Arguments, Command, Option, UsageError

if TYPE_CHECKING:
    from pycontain.cli.app import Context

__all__ = ["COMMANDS"]


def _copy(arguments: Arguments, context: Context) -> int:
    """Copy files or directories into a container or out of it."""
    source, target = arguments.operands
    from_container, from_path = _split(source)
    to_container, to_path = _split(target)
    if (from_container is None) == (to_container is None):
        raise UsageError(
            f"{source!r} to {target!r}",
            field="cp",
            hint="exactly one of the two is CONTAINER:PATH; write ./a:b for a host file's name",
        )
    engine = context.engine()
    if from_container is not None:
        engine.get(from_container).copy_out(from_path, to_path, archive=arguments.archive)
    elif to_container is not None:
        engine.get(to_container).copy_in(from_path, to_path, archive=arguments.archive)
    return 0


def _split(text: str) -> tuple[str | None, str]:
    """(container or None, path); as in docker, what begins with "." or "/" is the host's."""
    container, colon, path = text.partition(":")
    if not colon or not container or text[0] in "./" or "/" in container:
        return None, text
    return container, path or "/"


COMMANDS = {
    "cp": Command(
        "copy files into a container or out of it",
        "SOURCE DESTINATION",
        _copy,
        (Option(("-a", "--archive"), "keep owners, times and modes"),),
        least=2,
        most=2,
        complete="file",
    ),
}
