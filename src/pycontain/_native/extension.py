"""Loads the compiled extension and refuses one that was built from other sources.

Only this module imports `_ext`: everything else takes `ffi` and `lib` from here.
"""

from __future__ import annotations

from pycontain._native.version import VERSION

try:
    from pycontain._native._ext import ffi, lib
except ImportError as error:
    raise ImportError(
        f"pycontain's native extension can't be loaded: {error}. In a source tree run `make venv`."
    ) from error

__all__ = ["ABI", "ffi", "lib"]

ABI = 1  # of plan.h, as this Python code knows it


def check(abi: int, version: str) -> None:
    """Raise ImportError unless the extension was built from this version of the package."""
    if (abi, version) != (ABI, VERSION):
        raise ImportError(
            f"pycontain {VERSION} (ABI {ABI}) found a native extension of version {version} "
            f"(ABI {abi}). Reinstall the package; in a source tree run `make venv`."
        )


check(lib.PYC_ABI, ffi.string(lib.pyc_version()).decode())
