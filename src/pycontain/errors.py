"""Every exception that pycontain raises, in one tree.

The class says whose fault it is: the caller's (`InvalidInput`), the world's (`NotFound`,
`WrongState`, `Unsupported`, `KernelError`), a hostile or broken source's (`UntrustedContent`), the
container's own (`ContainerFailed`), or ours (`InternalError`). The message names the option or
config field, the system call as made, and what would help.
"""

from __future__ import annotations

import os
from typing import Any

__all__ = [
    "AlreadyExists",
    "ChildSetupError",
    "CommandNotExecutable",
    "CommandNotFound",
    "ContainerFailed",
    "ContainerNotFound",
    "DigestMismatch",
    "ImageNotFound",
    "InternalError",
    "InvalidInput",
    "InvalidReference",
    "InvalidSpec",
    "KernelError",
    "MalformedManifest",
    "NotFound",
    "PycontainError",
    "SizeMismatch",
    "TimeoutExpired",
    "UnsafeLayer",
    "Unsupported",
    "UntrustedContent",
    "WrongState",
]


class PycontainError(Exception):
    """Base of all errors. `str()` is one line; `hint`, if any, says what would help."""

    hint: str | None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InvalidInput(PycontainError, ValueError):
    """The caller gave something that can't be right; `field` names it (`memory`, `mounts[3]`)."""

    def __init__(self, message: str, *, field: str | None = None, hint: str | None = None) -> None:
        super().__init__(f"{field}: {message}" if field else message, hint=hint)
        self.field = field


class InvalidReference(InvalidInput):
    """An image argument that no transport or reference grammar accepts."""


class InvalidSpec(InvalidInput):
    """A field of a container's spec that is missing, malformed or contradicts another."""


class NotFound(PycontainError, LookupError):
    """What was named does not exist."""


class ContainerNotFound(NotFound):
    """No container has this id, name or unique prefix."""


class ImageNotFound(NotFound):
    """No image answers to this reference."""


class CommandNotFound(NotFound):
    """The command does not exist in the image; the command line's exit code is 127."""


class CommandNotExecutable(PycontainError):
    """The command exists in the image but can't be executed; the exit code is 126."""


class AlreadyExists(PycontainError):
    """The name or id is taken."""


class WrongState(PycontainError):
    """The container is not in a state that allows this; `status` is the one that it is in."""

    def __init__(self, message: str, *, status: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class Unsupported(PycontainError):
    """This host can't do it; `needs` says what it lacks. Nothing was half-done instead."""

    def __init__(self, feature: str, *, needs: str, hint: str | None = None) -> None:
        super().__init__(f"{feature}: not possible on this host, needs {needs}", hint=hint)
        self.feature = feature
        self.needs = needs


class KernelError(PycontainError, OSError):
    """A system call failed. `errno`, `syscall` (the call as made) and `strerror` say how."""

    def __init__(
        self, errno_: int, syscall: str, *, field: str | None = None, hint: str | None = None
    ) -> None:
        self.syscall = syscall
        self.field = field
        text = f"{syscall}: {os.strerror(errno_)}"
        PycontainError.__init__(self, f"{field}: {text}" if field else text, hint=hint)
        self.errno = errno_
        self.strerror = os.strerror(errno_)


class ChildSetupError(KernelError):
    """An op of the plan failed between clone and exec; `field` is the spec field it came from."""

    def __init__(
        self,
        errno_: int,
        syscall: str,
        *,
        field: str | None,
        op_index: int,
        op: str,
        hint: str | None = None,
    ) -> None:
        super().__init__(errno_, syscall, field=field, hint=hint)
        self.op_index = op_index
        self.op = op


class UntrustedContent(PycontainError):
    """Content from outside is hostile or broken and was refused; nothing of it was kept."""


class DigestMismatch(UntrustedContent):
    """The bytes do not have the digest that names them."""


class SizeMismatch(UntrustedContent):
    """The bytes are more or fewer than their descriptor says."""


class UnsafeLayer(UntrustedContent):
    """A layer's entry would reach outside the root or breaks a limit; `entry` names it."""

    def __init__(self, message: str, *, entry: str | None = None, hint: str | None = None) -> None:
        super().__init__(f"layer entry {entry!r}: {message}" if entry else message, hint=hint)
        self.entry = entry


class MalformedManifest(UntrustedContent):
    """A manifest, index or config that is not what its media type promises."""


class TimeoutExpired(PycontainError, TimeoutError):
    """A wait ended before what it waited for; the container goes on."""


class ContainerFailed(PycontainError):
    """`check=True` and the container did not exit with 0; `result` is the whole record."""

    def __init__(self, message: str, *, result: Any) -> None:
        super().__init__(message)
        self.result = result


class InternalError(PycontainError):
    """A bug of ours, or a broken installation: please report it."""
