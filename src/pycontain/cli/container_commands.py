"""The verbs that act on containers that exist: stop, kill, pause, update, rm, inspect, ..."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pycontain.cli.arguments import Arguments, Command, Option, UsageError
from pycontain.cli.errors import EXIT_FAILED, describe, exit_code_of_end
from pycontain.cli.for_each import for_each
from pycontain.cli.format import FORMAT, Template, to_json
from pycontain.cli.run_options import unsigned
from pycontain.errors import ContainerNotFound, InvalidInput, NotFound, WrongState

if TYPE_CHECKING:
    from pycontain.cli.app import Context
    from pycontain.engine import Engine
    from pycontain.runtime.container import Container

__all__ = ["COMMANDS"]


def _seconds(text: str | None, flag: str) -> float | None:
    if text is None:
        return None
    from pycontain.runtime.units import parse_duration

    return parse_duration(text, field=flag) / 1e6


def _stop(arguments: Arguments, context: Context) -> int:
    """Ask containers to stop; kill those that have not after the timeout."""
    timeout_sec = _seconds(arguments.time, "--time")
    from pycontain.runtime.options import parse_signal

    number = parse_signal(arguments.signal, field="--signal") if arguments.signal else None

    def stop(container: Container) -> None:
        if number is not None:
            container.send_signal(number)
        container.stop(timeout_sec)

    return for_each(context, arguments.operands, stop)


def _restart(arguments: Arguments, context: Context) -> int:
    """Stop containers that run, and start them again."""
    timeout_sec = _seconds(arguments.time, "--time")

    def restart(container: Container) -> None:
        if container.status in ("running", "paused"):
            container.stop(timeout_sec)
        container.start()

    return for_each(context, arguments.operands, restart)


def _kill(arguments: Arguments, context: Context) -> int:
    """Send a signal to the first process of containers; without one, kill all of them."""
    from pycontain.runtime.options import parse_signal

    number = parse_signal(arguments.signal, field="--signal")
    if number == signal.SIGKILL:
        return for_each(context, arguments.operands, lambda container: container.kill())
    return for_each(context, arguments.operands, lambda container: container.send_signal(number))


def _pause(arguments: Arguments, context: Context) -> int:
    """Freeze all processes of containers."""
    return for_each(context, arguments.operands, lambda container: container.pause())


def _unpause(arguments: Arguments, context: Context) -> int:
    """Let frozen containers go on."""
    return for_each(context, arguments.operands, lambda container: container.resume())


def _remove(arguments: Arguments, context: Context) -> int:
    """Remove containers; with -f also those that run."""
    force = arguments.force
    engine = context.engine()
    if force:
        for reference in arguments.operands:
            with suppress(ContainerNotFound):
                _remove_damaged(engine, reference)
    return for_each(context, arguments.operands, lambda container: container.remove(force=force))


def _remove_damaged(engine: Engine, reference: str) -> None:
    """Nothing is left of a container whose state can't be read; of any other, all is as before."""
    try:
        engine.get(reference)
    except WrongState:
        from pycontain.runtime.container import remove_traces

        container_id = engine.host.states.resolve(reference)
        cgroup = f"{engine.host.cgroup_parent(start=False)}/{container_id}"
        remove_traces(engine.host, container_id, cgroup)
        print(f"pycontain: {reference}: removed although its state was damaged", file=sys.stderr)


def _rename(arguments: Arguments, context: Context) -> int:
    """Give a container another name."""
    reference, name = arguments.operands
    context.engine().get(reference).rename(name)
    return 0


def _wait(arguments: Arguments, context: Context) -> int:
    """Wait until containers have ended, and print their exit codes."""

    def wait(container: Container) -> None:
        record = container.wait()
        print(exit_code_of_end(record.exit_code, record.signal), flush=True)

    return for_each(context, arguments.operands, wait, echo=False)


_UPDATED = (
    Option(("-m", "--memory"), "memory limit, such as 256m", "BYTES"),
    Option(("--memory-swap",), "limit of memory and swap together; -1: none", "BYTES"),
    Option(("--memory-reservation",), "memory kept from reclaim while possible", "BYTES"),
    Option(("--cpus",), "CPU limit, such as 0.5", "NUMBER"),
    Option(("--cpu-weight",), "share of contended CPUs, 1 to 10000", "WEIGHT"),
    Option(("--cpuset-cpus",), "CPUs to run on, such as 0-2,4", "LIST"),
    Option(("--cpuset-mems",), "memory nodes to use, such as 0", "LIST"),
    Option(("--pids-limit",), "most processes and threads; -1: no limit", "NUMBER"),
    Option(("--io-weight",), "share of contended disks, 1 to 10000", "WEIGHT"),
    Option(("--io-max",), "limits of a disk: '8:0 rbps=1m wiops=100'", "LIMIT", True),
)


def _update(arguments: Arguments, context: Context) -> int:
    """Change the limits of containers, also while they run."""
    limits: dict[str, Any] = {
        name: value for name, value in arguments.values.items() if value not in (None, [])
    }
    for name, least in (("cpu_weight", 1), ("io_weight", 1), ("pids_limit", -1)):
        if name in limits:
            limits[name] = unsigned(limits[name], "--" + name.replace("_", "-"), least=least)
    if "pids_limit" in limits:
        limits["pids"] = limits.pop("pids_limit")
    if not limits:
        raise UsageError("no limit to change", field="update", hint="give one such as --memory")
    return for_each(context, arguments.operands, lambda container: container.update(**limits))


def _inspect(arguments: Arguments, context: Context) -> int:
    """Print all that is known of containers or images, as JSON."""
    engine = context.engine()
    template = None
    if arguments.format not in (None, "", "json"):
        template = Template(arguments.format)
    documents = []
    code = 0
    for reference in arguments.operands:
        try:
            documents.append(_document(engine, reference, arguments.type))
        except NotFound as error:
            print(f"pycontain: {describe(error)}", file=sys.stderr)
            code = EXIT_FAILED
    if template is not None:
        for document in documents:
            print(template.render(document))
    else:
        print(to_json(documents, indent=None if arguments.format == "json" else 4))
    return code


def _document(engine: Any, reference: str, kind: str | None) -> dict[str, Any]:
    """The document of the container, or else of the image, that `reference` names."""
    if kind != "image":
        try:
            document: dict[str, Any] = engine.get(reference).inspect()
            return document
        except ContainerNotFound:
            if kind == "container":
                raise
    try:
        return dict(engine.images.inspect(reference))
    except (NotFound, InvalidInput):
        if kind == "image":
            raise
        raise NotFound(f"no container or image {reference!r}") from None


_TIME = Option(("-t", "--time"), "seconds until it is killed (10)", "SECONDS")
_SIGNAL_HELP = "signal, by name or number"


def _each(summary: str, run: Any, *options: Option) -> Command:
    """A verb that takes one container or more."""
    operands = "CONTAINER [CONTAINER...]"
    return Command(summary, operands, run, options, least=1, most=None, complete="container")


COMMANDS = {
    "inspect": Command(
        "print all that is known of containers or images, as JSON",
        "NAME [NAME...]",
        _inspect,
        (
            FORMAT._replace(flags=("-f", "--format")),
            Option(("--type",), "look for this only", "KIND", choices=("container", "image")),
        ),
        least=1,
        most=None,
        complete="container",
    ),
    "kill": _each(
        "send a signal to containers",
        _kill,
        Option(
            ("-s", "--signal"), f"{_SIGNAL_HELP} (KILL: all processes)", "SIGNAL", default="KILL"
        ),
    ),
    "pause": _each("freeze all processes of containers", _pause),
    "rename": Command(
        "give a container another name",
        "CONTAINER NAME",
        _rename,
        least=2,
        most=2,
        complete="container",
    ),
    "restart": _each("stop containers and start them again", _restart, _TIME),
    "rm": _each(
        "remove containers", _remove, Option(("-f", "--force"), "kill them first if they run")
    ),
    "stop": _each(
        "ask containers to stop, and kill those that do not",
        _stop,
        _TIME,
        Option(("-s", "--signal"), f"{_SIGNAL_HELP}, instead of the container's own", "SIGNAL"),
    ),
    "unpause": _each("let frozen containers go on", _unpause),
    "update": _each("change the limits of containers, also while they run", _update, *_UPDATED),
    "wait": _each("wait until containers have ended, and print their exit codes", _wait),
}
