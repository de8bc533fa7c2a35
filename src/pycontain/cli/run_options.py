"""The options of `run` and `create`, and the `RunOptions` that they mean.

Values stay as typed: `runtime.options` has their grammar, and names its field in an error, which
`cli.errors.describe` turns back into the option.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pycontain.cli.arguments import Arguments, Option, UsageError
from pycontain.cli.session import DETACH_KEYS
from pycontain.runtime.options import RunOptions, parse_env, parse_env_file

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CREATE_OPTIONS",
    "ENVIRONMENT",
    "RUN_OPTIONS",
    "environment",
    "run_options",
    "unsigned",
]

ENVIRONMENT = (
    Option(("-e", "--env"), "set a variable; NAME alone takes the caller's", "NAME[=VALUE]", True),
    Option(("--env-file",), "read variables from a file", "FILE", True, complete="file"),
)

_QUOTAS = (
    Option(("-m", "--memory"), "memory limit, such as 256m", "BYTES"),
    Option(("--memory-swap",), "limit of memory and swap together; -1: none", "BYTES"),
    Option(("--memory-reservation",), "memory kept from reclaim while possible", "BYTES"),
    Option(("--cpus",), "CPU limit, such as 0.5", "NUMBER"),
    Option(("--cpu-weight",), "share of contended CPUs, 1 to 10000 (100)", "WEIGHT"),
    Option(("--cpuset-cpus",), "CPUs to run on, such as 0-2,4", "LIST"),
    Option(("--cpuset-mems",), "memory nodes to use, such as 0", "LIST"),
    Option(("--pids-limit",), "most processes and threads (2048); -1: no limit", "NUMBER"),
    Option(("--io-weight",), "share of contended disks, 1 to 10000 (100)", "WEIGHT"),
    Option(("--io-max",), "limits of a disk: '8:0 rbps=1m wiops=100'", "LIMIT", True),
    Option(("--cgroup-conf",), "write any file of the cgroup (v2)", "FILE=VALUE", True),
    Option(("--cgroup-parent",), "put the container's cgroup below this one", "PATH"),
    Option(("--timeout",), "kill the whole container after this long", "SECONDS"),
    Option(("--ulimit",), "resource limit, such as nofile=1024:2048", "NAME=SOFT[:HARD]", True),
    Option(("--oom-score-adj",), "-1000 to 1000: more is killed sooner", "NUMBER"),
    Option(("--shm-size",), "size of /dev/shm (64m)", "BYTES"),
)
_PROCESS = (
    *ENVIRONMENT,
    Option(("-u", "--user"), "user, as in the image or as numbers", "USER[:GROUP]"),
    Option(("-w", "--workdir"), "working directory", "DIR"),
    Option(("--group-add",), "additional group", "GROUP", True),
    Option(("--umask",), "file mode creation mask (022)", "OCTAL"),
    Option(("--entrypoint",), "replace the image's entrypoint; '' drops it", "COMMAND"),
    Option(("--init",), "run a reaper as pid 1"),
    Option(("-t", "--tty"), "give the container a terminal"),
    Option(("-i", "--interactive"), "keep stdin open"),
    Option(("--stop-signal",), "signal that asks it to stop (SIGTERM)", "SIGNAL"),
    Option(("--stop-timeout",), "seconds from that signal to SIGKILL (10)", "SECONDS"),
)
_RIGHTS = (
    Option(("--cap-add",), "grant a capability", "CAPABILITY", True),
    Option(("--cap-drop",), "drop a capability, or ALL", "CAPABILITY", True),
    Option(
        ("--security-opt",),
        "seccomp=FILE, seccomp=unconfined, no-new-privileges[=false], mask=PATH, unmask=PATH",
        "OPTION",
        True,
    ),
    Option(("--device",), "allow a device of the host", "PATH[:TARGET][:rwm]", True),
    Option(("--sysctl",), "set a kernel parameter of its namespaces", "NAME=VALUE", True),
)
_FILES = (
    Option(("-v", "--volume"), "mount a directory of the host", "HOST:CONTAINER[:ro]", True),
    Option(("--mount",), "mount, such as type=bind,src=/a,dst=/b,readonly", "MOUNT", True),
    Option(("--tmpfs",), "mount a tmpfs", "DIR[:size=64m,...]", True),
    Option(("--read-only",), "make the root read-only"),
    Option(("--rootfs",), "run in this directory instead of an image", "DIR", complete="directory"),
)
_NAMESPACES = (
    Option(("-h", "--hostname"), "host name in the container (its short id)", "NAME"),
    Option(("--domainname",), "domain name in the container", "NAME"),
    Option(("--network", "--net"), "none, host or ns:PATH (none)", "MODE"),
    Option(("--pid",), "private, host or ns:PATH (private)", "MODE"),
    Option(("--ipc",), "private, host or ns:PATH (private)", "MODE"),
    Option(("--uts",), "private, host or ns:PATH (private)", "MODE"),
    Option(("--cgroupns",), "private, host or ns:PATH (private)", "MODE"),
    Option(("--userns",), "host, or id maps such as 0:100000:65536 (host)", "MODE"),
)
_BOOKKEEPING = (
    Option(("--name",), "name instead of a made-up one", "NAME"),
    Option(("-l", "--label"), "attach a label", "KEY[=VALUE]", True),
    Option(("--label-file",), "read labels from a file", "FILE", True, complete="file"),
    Option(("--log-max-size",), "size at which the log is rotated (16m)", "BYTES"),
    Option(("--log-max-files",), "rotated logs to keep (2)", "NUMBER"),
    Option(("--cidfile",), "write the container's id to this new file", "FILE", complete="file"),
    Option(("--rm",), "remove the container once it has ended"),
    Option(("--dry-run",), "print what would be done, and do nothing"),
)

CREATE_OPTIONS = (
    *_QUOTAS,
    *_PROCESS,
    *_RIGHTS,
    *_FILES,
    *_NAMESPACES,
    *_BOOKKEEPING,
)
RUN_OPTIONS = (
    *CREATE_OPTIONS,
    Option(("-d", "--detach"), "print the id and leave the container running"),
    Option(("--stats",), "print what it used to stderr once it has ended"),
    Option(("--sig-proxy",), "pass signals on to the container (true)", default=True),
    DETACH_KEYS,
)

_AS_TYPED = (
    "memory", "memory_swap", "memory_reservation", "cpus", "cpuset_cpus", "cpuset_mems", "io_max",
    "cgroup_conf", "cgroup_parent", "timeout", "shm_size", "user", "group_add", "entrypoint",
    "init", "tty", "interactive", "stop_signal", "stop_timeout", "cap_add", "cap_drop", "tmpfs",
    "read_only", "hostname", "domainname", "pid", "ipc", "uts", "cgroupns", "userns", "name",
)  # fmt: skip
_RENAMED = {
    "ulimit": "ulimits",
    "workdir": "cwd",
    "device": "devices",
    "sysctl": "sysctls",
    "volume": "volumes",
    "mount": "mounts",
    "net": "network",
    "log_max_size": "log_max_bytes",
}


def run_options(arguments: Arguments) -> RunOptions:
    """The engine's options for what was typed after `run` or `create`.

    Raises:
        UsageError, InvalidInput: a value that its option can't have.
    """
    values = arguments.values
    found: dict[str, Any] = {name: values[name] for name in _AS_TYPED}
    for typed, name in _RENAMED.items():
        found[name] = values[typed]
    for name, least in (
        ("cpu_weight", 1),
        ("io_weight", 1),
        ("pids_limit", -1),
        ("oom_score_adj", -1000),
        ("log_max_files", 1),
    ):
        found[name] = unsigned(values[name], "--" + name.replace("_", "-"), least=least)
    found["pids"] = found.pop("pids_limit") or None  # 0 is docker's "unset"
    found["umask"] = _octal(values["umask"])
    found["env"] = environment(values["env_file"], values["env"], os.environ)
    found["labels"] = _labels(values["label_file"], values["label"])
    found |= _security_options(values["security_opt"])
    # What was not given is left to RunOptions, which knows the defaults.
    return RunOptions(**{name: value for name, value in found.items() if value not in (None, [])})


def environment(files: list[str], values: list[str], environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of `--env-file`s and then of `-e`s; a bare NAME is copied from `environ`."""
    found: dict[str, str] = {}
    for path in files:
        found |= parse_env_file(_text(path, "--env-file"), environ=environ)
    return found | parse_env(values, environ=environ)


def _labels(files: list[str], values: list[str]) -> dict[str, str]:
    for path in files:
        lines = _text(path, "--label-file").splitlines()
        values = [line.strip() for line in lines if line.strip()[:1] not in ("", "#")] + values
    found = {}
    for text in values:
        key, _, value = text.partition("=")
        if not key:
            raise UsageError(f"{text!r} is not KEY=VALUE", field="--label")
        found[key] = value
    return found


def _text(path: str, flag: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", field=flag) from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text", field=flag) from None


def _security_options(texts: list[str]) -> dict[str, Any]:
    """The fields of RunOptions that `--security-opt` words stand for."""
    found: dict[str, Any] = {"mask": [], "unmask": []}
    for text in texts:
        key, _, value = text.replace(":", "=", 1).partition("=")
        if key == "seccomp" and value:
            found["seccomp"] = value
        elif key == "no-new-privileges" and value.lower() in ("", "true", "false"):
            found["no_new_privileges"] = value.lower() != "false"
        elif key in ("mask", "unmask") and value:
            found[key] += value.split(":")
        else:
            hint = "use seccomp=FILE, seccomp=unconfined, no-new-privileges, mask= or unmask="
            raise UsageError(f"{text!r} is not known", field="--security-opt", hint=hint)
    return found


def unsigned(text: str | None, flag: str, *, least: int = 0) -> int | None:
    """`text` as a whole number of at least `least`; None stays None."""
    if text is None:
        return None
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20) or int(text) < least:
        raise UsageError(f"{text!r} is not a whole number from {least} on", field=flag)
    return int(text)


def _octal(text: str | None) -> int | None:
    if text is None:
        return None
    if not text or len(text) > 5 or any(digit not in "01234567" for digit in text):
        raise UsageError(f"{text!r} is not an octal mode", field="--umask")
    return int(text, 8)
