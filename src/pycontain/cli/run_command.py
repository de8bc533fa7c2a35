"""`run`, `create` and `start`: a container from an image, in the foreground or not."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from pycontain.cli.arguments import Arguments, Command, Option, UsageError
from pycontain.cli.attach_commands import attach_to, relay_terminal
from pycontain.cli.errors import exit_code_of_end
from pycontain.cli.for_each import for_each
from pycontain.cli.run_options import CREATE_OPTIONS, RUN_OPTIONS, run_options
from pycontain.cli.session import (
    DETACH_KEYS,
    SignalForwarder,
    check_terminal,
    say_why_it_ended,
    stdin_fd,
)
from pycontain.errors import AlreadyExists, WrongState
from pycontain.values import replace

if TYPE_CHECKING:
    from collections.abc import Callable

    from pycontain.cli.app import Context
    from pycontain.engine import Engine
    from pycontain.runtime.container import Container
    from pycontain.usage import ExitRecord

__all__ = ["COMMANDS", "finish"]


def _image_and_command(arguments: Arguments) -> tuple[str, list[str] | None]:
    """The image, or the directory of --rootfs in an image's words, and the command after it."""
    operands = list(arguments.operands)
    if arguments.rootfs:
        return f"rootfs:{os.path.abspath(arguments.rootfs)}", operands or None
    if not operands:
        raise UsageError("missing", field="IMAGE", hint="see 'pycontain run --help'")
    return operands[0], operands[1:] or None


def _reserve_cidfile(path: str | None) -> int:
    """A descriptor of the new file `path`, -1 without one."""
    if path is None:
        return -1
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", field="--cidfile") from None


def _make(
    arguments: Arguments, context: Context, *, stdio: tuple[int, int, int] | None, detach: bool
) -> Container:
    """The created container of the command line; nothing of it is left if that fails.

    With `stdio` these descriptors are the container's; without, its output is logged. Unless
    `detach`, it is killed when this process dies.
    """
    image, command = _image_and_command(arguments)
    options = run_options(arguments)
    cidfile_fd = _reserve_cidfile(arguments.cidfile)
    try:
        engine = context.engine()
        if stdio is None:
            container = engine.container(image, command, log=True, detach=detach, options=options)
        else:
            stdin, stdout, stderr = stdio
            container = engine.container(
                image,
                command,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                detach=detach,
                options=options,
            )
        if arguments.rm:
            container.blueprint = replace(container.blueprint, auto_remove=True)
        try:
            _create_container(engine, container)
            if cidfile_fd >= 0:
                os.write(cidfile_fd, container.id.encode())
        except BaseException:
            container.remove(force=True)
            raise
    except BaseException:
        if cidfile_fd >= 0:
            os.unlink(arguments.cidfile)
        raise
    finally:
        if cidfile_fd >= 0:
            os.close(cidfile_fd)
    return container


def _create_container(engine: Engine, container: Container) -> None:
    """It exists; a name may be held by one that ended and was to be removed then."""
    try:
        container.create()
    except AlreadyExists:
        if not engine.prune(exited=False).containers:
            raise
        container.create()


def _dry_run(arguments: Arguments, context: Context) -> int:
    image, command = _image_and_command(arguments)
    plan = context.engine().plan(image, command, run_options(arguments))
    print(plan, end="" if plan.endswith("\n") else "\n")
    return 0


def _create(arguments: Arguments, context: Context) -> int:
    """Make a container without starting it, and print its id."""
    if arguments.dry_run:
        return _dry_run(arguments, context)
    print(_make(arguments, context, stdio=None, detach=True).id)
    return 0


def _run(arguments: Arguments, context: Context) -> int:
    """Make and start a container; wait for its end unless it is detached."""
    if arguments.dry_run:
        return _dry_run(arguments, context)
    if arguments.detach:
        container = _make(arguments, context, stdio=None, detach=True)
        _start_or_remove(container, arguments.cidfile)
        print(container.id)
        return 0
    check_terminal(arguments.interactive, arguments.tty)
    if arguments.tty:
        container = _make(arguments, context, stdio=None, detach=True)
        _start_or_remove(container, arguments.cidfile, attach=True)
        if relay_terminal(container, arguments.interactive, arguments.detach_keys):
            return 0
        record = container.wait()
    else:
        stdio = (stdin_fd(arguments.interactive), 1, 2)
        container = _make(arguments, context, stdio=stdio, detach=not arguments.sig_proxy)
        record = _foreground(
            container,
            lambda: _start_or_remove(container, arguments.cidfile),
            sig_proxy=arguments.sig_proxy,
        )
    return finish(container, record, remove=arguments.rm, stats=arguments.stats)


def _foreground(
    container: Container, start: Callable[[], object], *, sig_proxy: bool
) -> ExitRecord:
    """Start a container that has our descriptors, and return how it ended.

    Without `sig_proxy` signals have their usual effect on us and none on the container.
    """
    if not sig_proxy:
        start()
        return container.wait()
    with SignalForwarder() as signals:
        start()
        try:
            signals.wait(container)
            return container.wait()
        except BaseException:
            container.kill()
            raise


def _start_or_remove(container: Container, cidfile: str | None, *, attach: bool = False) -> None:
    """Start a container that was just made; a failed start leaves nothing of it."""
    try:
        container.start(attach=attach)
    except BaseException:
        container.remove(force=True)
        if cidfile is not None:
            os.unlink(cidfile)
        raise


def finish(
    container: Container, record: ExitRecord, *, remove: bool = False, stats: bool = False
) -> int:
    """Say what the exit code does not, remove the container if asked, and return the exit code."""
    code = exit_code_of_end(record.exit_code, record.signal)
    if code != 0:
        say_why_it_ended(container.name, record)
    if remove:
        container.remove(force=True)
    if stats:
        from pycontain.cli.usage_table import usage_table

        sys.stderr.write(usage_table(record))
    return code


def _start(arguments: Arguments, context: Context) -> int:
    """Start containers that exist; with -a, stay with one of them until it ends."""
    if not (arguments.attach or arguments.interactive):
        return for_each(context, arguments.operands, _start_detached)
    if len(arguments.operands) != 1:
        raise UsageError("works with one container only", field="--attach")
    container = context.engine().get(arguments.operands[0])
    if _has_our_streams(container):
        return finish(container, _foreground(container, container.start, sig_proxy=True))
    since = time.time()
    container.start(attach=container.inspect()["Config"]["Tty"])
    return attach_to(container, arguments.interactive, arguments.detach_keys, since=since)


def _start_detached(container: Container) -> None:
    """Start a container that can do without us."""
    if _has_our_streams(container):
        raise WrongState(
            "it was made to run in the foreground", hint="start it with -a, or make it with create"
        )
    container.start()


def _has_our_streams(container: Container) -> bool:
    """Whether its output is passed through to whoever starts it, and not kept in a log."""
    config = container.inspect()
    return not (config["LogPath"] or config["Config"]["Tty"])


COMMANDS = {
    "run": Command(
        "make a container from an image and run a command in it",
        "IMAGE [COMMAND [ARG...]]",
        _run,
        RUN_OPTIONS,
        most=None,
        options_end=True,
        complete="image",
    ),
    "create": Command(
        "make a container without starting it",
        "IMAGE [COMMAND [ARG...]]",
        _create,
        CREATE_OPTIONS,
        most=None,
        options_end=True,
        complete="image",
    ),
    "start": Command(
        "start containers that were made by create, or have ended",
        "CONTAINER [CONTAINER...]",
        _start,
        (
            Option(("-a", "--attach"), "show its output and end with its exit code"),
            Option(("-i", "--interactive"), "pass stdin on as well"),
            DETACH_KEYS,
        ),
        least=1,
        most=None,
        complete="container",
    ),
}
