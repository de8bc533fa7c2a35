"""The monitor's exit record as values that users see."""

from __future__ import annotations

from pycontain import _native
from pycontain._native import C
from pycontain.isolation.cgroups import oom_facts, parse_sections, usage_from_text
from pycontain.usage import ExitRecord

__all__ = ["exit_record"]

_CLD_EXITED = 1  # siginfo si_code, waitid(2)


def exit_record(native: _native.NativeExit) -> ExitRecord:
    """Return how it ended; the cgroup's own numbers, taken after the last process had gone."""
    sections = parse_sections(native.text)
    oom_killed, pids_limit_hit = oom_facts(sections)
    known = not native.flags & C.PYC_X_UNKNOWN
    exited = native.code == _CLD_EXITED
    return ExitRecord(
        exit_code=native.status if known and exited else None,
        signal=native.status if known and not exited else None,
        known=known,
        oom_killed=oom_killed,
        pids_limit_hit=pids_limit_hit,
        timed_out=bool(native.flags & C.PYC_X_TIMED_OUT),
        started_at=native.started_usec / 1e6,
        ended_at=native.ended_usec / 1e6,
        usage=usage_from_text(sections),
    )
