"""What a container used, as a table of lines: the text of `run --stats`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pycontain.runtime.units import format_bytes

if TYPE_CHECKING:
    from pycontain.usage import ExitRecord, IoUsage, Pressure, Usage

__all__ = ["usage_table"]

_UNKNOWN = "not measured by this kernel"


def usage_table(record: ExitRecord) -> str:
    """Lines of `name  value` about how a container ended and what it used in all."""
    usage = record.usage
    rows = [
        ("ended", _end(record)),
        ("elapsed", f"{record.ended_at - record.started_at:.3f} s"),
        ("cpu", _cpu(usage)),
        ("cpu throttled", _throttled(usage)),
        ("memory peak", _bytes(usage.memory_peak_bytes)),
        ("memory limit hit", _times(usage.memory_max_events)),
        ("oom kills", _count(usage.oom_kills)),
        ("pids peak", _count(usage.pids_peak)),
        ("pids refused", _count(usage.pids_max_events)),
        ("io", _io(usage.io)),
        ("pressure", _pressures(usage)),
    ]
    return "".join(f"{name:<18}{value}\n" for name, value in rows)


def _end(record: ExitRecord) -> str:
    if record.exit_code is not None:
        text = f"exit code {record.exit_code}"
    elif record.signal is not None:
        import signal

        name = signal.Signals(record.signal).name if record.signal < 32 else "SIGRT"
        text = f"signal {record.signal} ({name})"
    else:
        text = "unknown"
    reasons = {
        "timed out": record.timed_out,
        "out of memory": record.oom_killed,
        "pids limit hit": record.pids_limit_hit,
    }
    return ", ".join([text, *(reason for reason, is_so in reasons.items() if is_so)])


def _cpu(usage: Usage) -> str:
    if usage.cpu_usec is None:
        return _UNKNOWN
    text = _seconds(usage.cpu_usec)
    if usage.cpu_user_usec is None or usage.cpu_system_usec is None:
        return text
    return (
        f"{text} (user {_seconds(usage.cpu_user_usec)}, system {_seconds(usage.cpu_system_usec)})"
    )


def _throttled(usage: Usage) -> str:
    if usage.cpu_throttled_usec is None:
        return _UNKNOWN
    text = _seconds(usage.cpu_throttled_usec)
    if usage.cpu_periods:
        text += f" in {usage.cpu_throttled_periods} of {usage.cpu_periods} periods"
    return text


def _io(devices: tuple[IoUsage, ...] | None) -> str:
    if devices is None:
        return _UNKNOWN
    read = sum(device.read_bytes for device in devices)
    written = sum(device.write_bytes for device in devices)
    return f"{format_bytes(read)} read, {format_bytes(written)} written"


def _pressures(usage: Usage) -> str:
    """How long it stalled for each resource: some of its processes, and all of them."""
    parts = []
    stalls: tuple[tuple[str, Pressure | None], ...] = (
        ("cpu", usage.cpu_pressure),
        ("memory", usage.memory_pressure),
        ("io", usage.io_pressure),
    )
    for name, pressure in stalls:
        if pressure is not None:
            parts.append(f"{name} {_seconds(pressure.some_usec)}")
    return ", ".join(parts) or _UNKNOWN


def _seconds(usec: int) -> str:
    return f"{usec / 1e6:.3f} s"


def _bytes(count: int | None) -> str:
    return _UNKNOWN if count is None else format_bytes(count)


def _count(count: int | None) -> str:
    return _UNKNOWN if count is None else str(count)


def _times(count: int | None) -> str:
    return _UNKNOWN if count is None else f"{count} times"
