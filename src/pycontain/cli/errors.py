"""Errors become one line on stderr and an exit code; this table is the only place that maps them.

Codes are docker's: the container's own; 125 for pycontain itself, 126 a command that can't be
executed, 127 one that does not exist, 128 + n for an end by signal n.
"""

from __future__ import annotations

from pycontain.errors import CommandNotExecutable, CommandNotFound, InvalidInput, PycontainError

__all__ = [
    "EXIT_FAILED",
    "EXIT_INTERRUPTED",
    "EXIT_PIPE_CLOSED",
    "describe",
    "exit_code_of",
    "exit_code_of_end",
]

EXIT_FAILED = 125
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141
EXIT_UNKNOWN = 255

# Most specific first; whatever is not here is 125.
_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (CommandNotFound, EXIT_NOT_FOUND),
    (CommandNotExecutable, EXIT_NOT_EXECUTABLE),
    (KeyboardInterrupt, EXIT_INTERRUPTED),
    (BrokenPipeError, EXIT_PIPE_CLOSED),
)

# Options whose field in the library has another name; the rest are spelled alike (memory_swap).
_OPTION_OF_FIELD = {
    "args": "COMMAND",
    "command": "COMMAND",
    "cwd": "--workdir",
    "devices": "--device",
    "image": "IMAGE",
    "labels": "--label",
    "log_max_bytes": "--log-max-size",
    "mask": "--security-opt mask",
    "mounts": "--mount",
    "no_new_privileges": "--security-opt no-new-privileges",
    "pids": "--pids-limit",
    "process.args": "COMMAND",
    "process.cwd": "--workdir",
    "process.user": "--user",
    "seccomp": "--security-opt seccomp",
    "sysctls": "--sysctl",
    "ulimits": "--ulimit",
    "unmask": "--security-opt unmask",
    "volumes": "--volume",
}
_SAME_NAME = frozenset(
    (
        "cap_add", "cap_drop", "cgroup_conf", "cgroup_parent", "cgroupns", "cpus", "cpu_weight",
        "cpuset_cpus", "cpuset_mems", "domainname", "entrypoint", "env", "env_file", "group_add",
        "hostname", "init", "io_max", "io_weight", "ipc", "memory", "memory_reservation",
        "memory_swap", "name", "network", "oom_score_adj", "pid", "read_only", "rootfs",
        "shm_size", "stop_signal", "stop_timeout", "timeout", "tmpfs", "umask", "user", "userns",
        "uts",
    )
)  # fmt: skip


def exit_code_of(error: BaseException) -> int:
    """The exit code that stands for `error`."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    return EXIT_FAILED


def exit_code_of_end(exit_code: int | None, signal: int | None) -> int:
    """The exit code that passes on how a container ended; 255 if nobody knows how."""
    if exit_code is not None:
        return exit_code
    return EXIT_UNKNOWN if signal is None else 128 + signal


def describe(error: BaseException) -> str:
    """`error` in one line, naming the option as it is typed rather than the library's field."""
    if isinstance(error, InvalidInput) and error.field:
        text = str(error)
        field = error.field.partition(".")[0].partition("[")[0]
        option = _OPTION_OF_FIELD.get(error.field) or _OPTION_OF_FIELD.get(field)
        if option is None and field in _SAME_NAME:
            option = "--" + field.replace("_", "-")
        if option is not None and text.startswith(error.field):
            text = option + text[len(error.field) :]
    elif isinstance(error, PycontainError):
        text = str(error)
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = f"internal error: {type(error).__name__}: {error}"
        text += " (PYCONTAIN_DEBUG=1 shows where; please report it)"
    return " ".join(text.split("\n"))
