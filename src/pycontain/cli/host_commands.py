"""`info`, `version` and `prune`: about this host rather than one container."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pycontain.cli.arguments import Arguments, Command, Option
from pycontain.cli.format import FORMAT, print_document
from pycontain.cli.tables import size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pycontain.cli.app import Context

__all__ = ["COMMANDS", "in_words"]


def _info(arguments: Arguments, context: Context) -> int:
    """Print what this host can do, and why not."""
    document = context.engine().info()
    print_document(document, arguments.format, in_words(document))
    return 0


def in_words(document: Mapping[str, Any], indent: str = "") -> str:
    """Nested facts as indented lines; a key like `memory_max` reads `memory max`."""
    lines = []
    for key, value in document.items():
        name = str(key).replace("_", " ")
        if hasattr(value, "items"):
            lines.append(f"{indent}{name}:\n{in_words(value, indent + '  ')}")
        elif isinstance(value, list | tuple) and value:
            items = "".join(f"{indent}  {_word(item)}\n" for item in value)
            lines.append(f"{indent}{name}:\n{items}")
        else:
            lines.append(f"{indent}{name}: {_word(value)}\n")
    return "".join(lines)


def _word(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_word, value)) or "none"
    if hasattr(value, "items"):
        return ", ".join(f"{key} {_word(item)}" for key, item in value.items())
    return str(value)


def _version(arguments: Arguments, context: Context) -> int:
    """Print the versions of pycontain and of what it stands on."""
    import os

    from pycontain._native import version

    kernel = os.uname()
    document = {
        "Version": version.VERSION,
        "Python": ".".join(map(str, sys.version_info[:3])),
        "Kernel": kernel.release,
        "Os": kernel.sysname.lower(),
        "Arch": kernel.machine,
    }
    print_document(document, arguments.format, in_words(document))
    return 0


def _prune(arguments: Arguments, context: Context) -> int:
    """Remove containers that have ended, and everything that a crash left."""
    if not arguments.force and sys.stdin.isatty():
        print("This removes all containers that do not run, and what crashes left behind.")
        answer = input("Are you sure? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            return 0
    engine = context.engine()
    report = engine.prune()
    freed_bytes = report.freed_bytes
    _print_list("Removed containers:", report.containers)
    _print_list("Removed leftovers of a crash:", report.leftovers)
    if arguments.images:
        pruned = engine.images.prune()
        freed_bytes += pruned.freed_bytes
        _print_list("Removed images:", pruned.images)
    print(f"Total reclaimed space: {size(freed_bytes)}")
    return 0


def _print_list(title: str, items: Sequence[str]) -> None:
    if items:
        print("\n".join([title, *items]))


_FORMAT = FORMAT._replace(flags=("-f", "--format"))

COMMANDS = {
    "info": Command("print what this host can do, and why not", "", _info, (_FORMAT,)),
    "prune": Command(
        "remove containers that have ended, and what a crash left",
        "",
        _prune,
        (
            Option(("-f", "--force"), "do not ask"),
            Option(("--images",), "also images without a name, and unused layers"),
        ),
    ),
    "version": Command("print the versions of all parts", "", _version, (_FORMAT,)),
}
