"""Which of several manifests suits this host."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pycontain.errors import ImageNotFound
from pycontain.oci import Descriptor, Platform

_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "riscv64": ("riscv64", ""),
    "s390x": ("s390x", ""),
}
_AMD64_LEVELS = (
    ("v2", ("sse4_2", "popcnt", "ssse3", "cx16")),
    ("v3", ("avx2", "bmi2", "fma", "movbe")),
    ("v4", ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd")),
)


def host() -> Platform:
    """Returns this host's platform."""
    machine = os.uname().machine
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    return Platform("linux", architecture, variant or None)


def select(descriptors: Sequence[Descriptor], what: str) -> Descriptor:
    """Returns the best manifest for this host; those without a platform are a last resort.

    Raises:
        ImageNotFound: none suits; the hint lists what there is.
    """
    here = host()
    variants = _variants(here)
    best: tuple[int, Descriptor] | None = None
    for descriptor in descriptors:
        rank = _rank(descriptor.platform, here, variants)
        if rank is not None and (best is None or rank < best[0]):
            best = (rank, descriptor)
    if best is None:
        offered = [d.platform for d in descriptors if d.platform and d.platform.os != "unknown"]
        names = ", ".join(f"{p.os}/{p.architecture}" for p in offered) or "nothing"
        raise ImageNotFound(
            f"{what} has no image for {here.os}/{here.architecture}", hint=f"it has {names[:200]}"
        )
    return best[1]


def _rank(platform: Platform | None, here: Platform, variants: Sequence[str]) -> int | None:
    if platform is None or not platform.architecture:
        return len(variants)
    if platform.os != here.os or platform.architecture != here.architecture:
        return None
    variant = platform.variant or ""
    return variants.index(variant) if variant in variants else None


def _variants(here: Platform) -> list[str]:
    """Returns the variants that run here, the best first; "" is a manifest that names none."""
    if here.architecture == "amd64":
        return [*reversed(_amd64_levels()), "", "v1"]
    if here.architecture == "arm64":
        return ["v8", ""]
    if here.architecture == "arm":
        known = ["v7", "v6", "v5"]
        return [*known[known.index(here.variant or "v5") :], ""]
    return [""]


def _amd64_levels() -> list[str]:
    """Returns the micro-architecture levels that the processor has (x86-64 psABI, 3.1.1)."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            line = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return []
    flags = set(line.split())
    levels: list[str] = []
    for name, needed in _AMD64_LEVELS:
        if not flags.issuperset(needed):
            break
        levels.append(name)
    return levels
