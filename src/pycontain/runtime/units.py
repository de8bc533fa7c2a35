"""Amounts as people type them (`256M`, `1m30s`, `0.5`) become whole bytes and microseconds.

Digits are read as integers, never through a float, so that a limit is exactly what was written.
Source: docker's `--memory`/`--cpus` words (k, m, g are powers of 1024 there), Go's duration words.
"""

from __future__ import annotations

from pycontain.errors import InvalidInput

__all__ = [
    "CPU_PERIOD_USEC",
    "format_bytes",
    "format_cpus",
    "format_duration",
    "parse_bytes",
    "parse_cpus",
    "parse_duration",
]

CPU_PERIOD_USEC = 100_000
_MIN_QUOTA_USEC = 1_000  # the kernel's min_cfs_quota_period: 1 ms
_MAX_CPUS = 1_000_000
_MAX_INT64 = 2**63 - 1
_BYTE_UNITS = "kmgtp"
# Longest first, so that "ms" is not read as "m" with an "s" left over.
_DURATION_UNITS = (
    ("ms", 1_000),
    ("us", 1),
    ("µs", 1),
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
)


def parse_bytes(value: int | str, *, field: str = "size") -> int:
    """The number of bytes that `value` means; `1.5g` is 1610612736, a bare number is bytes.

    Suffixes b, k, m, g, t, p, also as KB or KiB, are powers of 1024 and any case, as in docker.

    Raises:
        InvalidInput: not an amount, negative, or more than 2**63 - 1; `field` names the option.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value <= _MAX_INT64:
            return value
        raise InvalidInput(f"{value} is not between 0 and 2**63 - 1 bytes", field=field)
    if not isinstance(value, str):
        raise InvalidInput(f"{value!r} is not an amount of bytes", field=field)
    text = value.strip().lower()
    number, unit = _split_number(text)
    unit = unit.strip()
    power = 0
    if unit and unit[0] in _BYTE_UNITS:
        power = _BYTE_UNITS.index(unit[0]) + 1
        unit = unit[1:]
        if unit == "ib":
            unit = ""
    if number is None or unit not in ("", "b"):
        raise InvalidInput(
            f"{value!r} is not an amount of bytes",
            field=field,
            hint="use a number with b, k, m, g or t, such as 256M",
        )
    digits, scale = number
    count = (digits << 10 * power) // scale
    if count > _MAX_INT64:
        raise InvalidInput(f"{value!r} is more than 2**63 - 1 bytes", field=field)
    return count


def parse_duration(value: float | str, *, field: str = "duration") -> int:
    """The whole microseconds that `value` means; a bare number is seconds.

    Raises:
        InvalidInput: not a duration, negative, or not finite; `field` names the option.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        if 0 <= value <= _MAX_INT64 / 1e6 - 1:  # also false for nan
            return round(value * 1_000_000)
        raise InvalidInput(f"{value} is not a duration in seconds", field=field)
    if isinstance(value, str):
        usec = _duration_words(value.strip().lower())
        if usec is not None and usec <= _MAX_INT64:
            return usec
    raise InvalidInput(
        f"{value!r} is not a duration",
        field=field,
        hint="use seconds or words such as 1m30s, 500ms",
    )


def parse_cpus(value: float | str, *, field: str = "cpus") -> int:
    """The CPU time, in microseconds, allowed per period of `CPU_PERIOD_USEC`; 0.5 is 50000.

    Raises:
        InvalidInput: not a number, or less than 0.01 (the kernel's smallest quota is 1 ms).
    """
    number: tuple[int, int] | None = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        if 0 <= value <= _MAX_CPUS:  # also false for nan
            number = (round(value * 1_000_000), 1_000_000)
    elif isinstance(value, str):
        number, rest = _split_number(value.strip())
        if rest:
            number = None
    if number is None or number[0] > _MAX_CPUS * number[1]:
        raise InvalidInput(f"{value!r} is not a number of CPUs", field=field)
    quota_usec = number[0] * CPU_PERIOD_USEC // number[1]
    if quota_usec < _MIN_QUOTA_USEC:
        raise InvalidInput(f"{value} is less than 0.01, the kernel's smallest quota", field=field)
    return quota_usec


def format_bytes(count: int) -> str:
    """`count` bytes for a table: four significant digits and a binary unit, `1.5GiB`."""
    if abs(count) < 1024:
        return f"{count}B"
    amount = count / 1024
    unit = 0
    while abs(amount) >= 999.95 and unit < len(_BYTE_UNITS) - 1:  # never 1e+03
        amount /= 1024
        unit += 1
    return f"{amount:.4g}{_BYTE_UNITS[unit].upper()}iB"


def format_duration(usec: int) -> str:
    """`usec` in words that `parse_duration` reads back to the same number, `1m30s`, `500ms`."""
    if usec == 0:
        return "0s"
    parts = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, usec = divmod(usec, size * 1_000_000)
        if count:
            parts.append(f"{count}{unit}")
    milliseconds, microseconds = divmod(usec, 1_000)
    if milliseconds:
        parts.append(f"{milliseconds}ms")
    if microseconds:
        parts.append(f"{microseconds}us")
    return "".join(parts)


def format_cpus(quota_usec: int, period_usec: int = CPU_PERIOD_USEC) -> str:
    """The quota as a number of CPUs, `0.5`."""
    return f"{quota_usec / period_usec:.6g}"


def _split_number(text: str) -> tuple[tuple[int, int] | None, str]:
    """((digits, scale), rest) of the decimal number that `text` begins with; number = digits/scale.

    ASCII digits only: `str.isdigit` is true for superscripts, and int() reads Arabic digits.
    """
    end = 0
    point = -1
    for end, char in enumerate(text):
        if char == "." and point < 0:
            point = end
        elif not "0" <= char <= "9":
            break
    else:
        end = len(text)
    number = text[:end]
    if end > 40 or number in ("", ".") or number[0] == "." or number[-1] == ".":
        return None, text
    if point < 0:
        return (int(number), 1), text[end:]
    return (int(number.replace(".", "")), 10 ** (end - point - 1)), text[end:]


def _duration_words(text: str) -> int | None:
    """Microseconds of `10`, `1.5h` or `1m30s`; None if it is none of these."""
    if not text:
        return None
    total = 0
    first = True
    while text:
        number, rest = _split_number(text)
        if number is None:
            return None
        known = (each for each in _DURATION_UNITS if rest.startswith(each[0]))
        unit, size_usec = next(known, ("", 1_000_000))
        if not unit and (rest or not first):
            return None
        total += number[0] * size_usec // number[1]
        text = rest[len(unit) :]
        first = False
    return total
