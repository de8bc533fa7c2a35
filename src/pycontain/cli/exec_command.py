"""`exec`: one more command in a running container."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pycontain.cli.arguments import Arguments, Command, Option
from pycontain.cli.attach_commands import relay
from pycontain.cli.errors import exit_code_of_end
from pycontain.cli.run_options import ENVIRONMENT, environment, unsigned
from pycontain.cli.session import (
    DETACH_KEYS,
    SignalForwarder,
    check_terminal,
    say_why_it_ended,
    stdin_fd,
)

if TYPE_CHECKING:
    from pycontain.cli.app import Context

__all__ = ["COMMANDS"]


def _exec(arguments: Arguments, context: Context) -> int:
    """Run a command in a container; wait for its end unless it is detached."""
    reference, *command = arguments.operands
    options = _options(arguments)
    check_terminal(arguments.interactive and not arguments.detach, arguments.tty)
    container = context.engine().get(reference)
    if arguments.detach:
        container.popen(command, detach=True, **options)
        return 0
    if arguments.tty:
        process = container.popen(command, tty=True, attach=True, **options)
        sock = process.attach()
        if relay(sock, arguments.interactive, arguments.detach_keys, process.resize):
            return 0
        record = process.wait()
    else:
        stdin = stdin_fd(arguments.interactive)
        with SignalForwarder() as signals:
            process = container.popen(command, stdin=stdin, stdout=1, stderr=2, **options)
            try:
                signals.wait(process)
                record = process.wait()
            except BaseException:
                process.kill()
                raise
    code = exit_code_of_end(record.exit_code, record.signal)
    if code != 0:
        say_why_it_ended(f"exec in {container.name}", record)
    return code


def _options(arguments: Arguments) -> dict[str, Any]:
    """The options of `Container.popen` that were given."""
    options = {
        "env": environment(arguments.env_file, arguments.env, os.environ) or None,
        "cwd": arguments.workdir,
        "user": arguments.user,
        "timeout": arguments.timeout,
        "memory": arguments.memory,
        "cpus": arguments.cpus,
        "pids": unsigned(arguments.pids_limit, "--pids-limit", least=-1),
    }
    return {name: value for name, value in options.items() if value is not None}


COMMANDS = {
    "exec": Command(
        "run a command in a running container",
        "CONTAINER COMMAND [ARG...]",
        _exec,
        (
            Option(("-d", "--detach"), "do not wait for its end"),
            Option(("-i", "--interactive"), "keep stdin open"),
            Option(("-t", "--tty"), "give it a terminal"),
            *ENVIRONMENT,
            Option(("-u", "--user"), "user, as in the container or as numbers", "USER[:GROUP]"),
            Option(("-w", "--workdir"), "working directory", "DIR"),
            Option(("--timeout",), "kill it and all that it started after this long", "SECONDS"),
            Option(("-m", "--memory"), "its own memory limit, such as 64m", "BYTES"),
            Option(("--cpus",), "its own CPU limit, such as 0.5", "NUMBER"),
            Option(("--pids-limit",), "its own limit of processes and threads", "NUMBER"),
            DETACH_KEYS,
        ),
        least=2,
        most=None,
        options_end=True,
        complete="container",
    ),
}
