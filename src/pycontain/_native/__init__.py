"""The native boundary: the only room that knows C.

    plan.h        the contract with the monitor, and the only copy of its numbers
    _ext          CFFI extension (API mode): sys.c and plan_check.c
    bin/          static programs: monitor, init, hello
    mounts.py     the mount interface by descriptors
    calls.py      other system calls that Python lacks: one typed function each
    paths.py      openat2; walk.py replaces it where it is forbidden
    messages.py   structs of plan.h as bytes and back

Everybody else imports this package and sees Python types only. `C` holds every constant of
plan.h (`C.PYC_OP_MKDIR`). All calls raise KernelError and release the GIL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pycontain._native.calls import *  # noqa: F403
from pycontain._native.extension import *  # noqa: F403
from pycontain._native.extension import lib
from pycontain._native.messages import *  # noqa: F403
from pycontain._native.mounts import *  # noqa: F403
from pycontain._native.paths import *  # noqa: F403
from pycontain._native.text import AT_FDCWD as AT_FDCWD
from pycontain._native.version import VERSION as VERSION
from pycontain.errors import InternalError

if TYPE_CHECKING:
    from pathlib import Path

C = lib


def binary_path(name: str) -> Path:
    """Return where the static program ("monitor", "init", "hello") is installed."""
    from pathlib import Path

    path = Path(__file__).with_name("bin") / name
    if not path.exists():
        raise InternalError(
            f"the program {name} is missing from the installation",
            hint="reinstall pycontain; in a source tree run `make venv`",
        )
    return path
