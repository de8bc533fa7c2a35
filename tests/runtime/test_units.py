"""Amounts, durations and CPU shares as people type them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontain.errors import InvalidInput
from pycontain.runtime import units


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (0, 0),
        (4096, 4096),
        ("0", 0),
        ("100", 100),
        ("100b", 100),
        ("1k", 1024),
        ("1K", 1024),
        ("256M", 256 << 20),
        ("256mb", 256 << 20),
        ("256MiB", 256 << 20),
        ("1.5g", 3 << 29),
        ("1 g", 1 << 30),
        ("2T", 2 << 40),
        ("0.1k", 102),
    ],
)
def test_bytes_are_read_as_docker_reads_them(text: int | str, count: int) -> None:
    """Suffixes are powers of 1024 in every spelling, fractions exact, bare numbers bytes."""
    assert units.parse_bytes(text) == count


@pytest.mark.parametrize(
    "text",
    ["", "M", "-1", "1x", "1kk", "1.2.3m", ".5g", "5.g", "1e9", "٣m", "²", "0x10", "9999999p"],
)
def test_what_is_no_amount_is_refused_by_name(text: str) -> None:
    """The error names the option that the amount was given for."""
    with pytest.raises(InvalidInput, match=r"^memory: ") as caught:
        units.parse_bytes(text, field="memory")
    assert caught.value.field == "memory"


@pytest.mark.parametrize("value", [-1, 2**63, True, None, 1.5])
def test_bytes_refuse_other_types_and_ranges(value: object) -> None:
    """A bool, None, a float or an int that the kernel could not hold is no amount."""
    with pytest.raises(InvalidInput):
        units.parse_bytes(value)  # type: ignore[arg-type]


@given(st.integers(0, 2**62))
def test_formatted_bytes_are_read_back_closely(count: int) -> None:
    """What a table shows is within the four digits that it shows."""
    again = units.parse_bytes(units.format_bytes(count))
    assert abs(again - count) <= max(1, count // 1000)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0B"), (1023, "1023B"), (1024, "1KiB"), (3 << 29, "1.5GiB"), ((1 << 20) - 1, "1MiB")],
)
def test_bytes_for_tables(count: int, text: str) -> None:
    """The unit is the largest that gives a number of at least one, never an exponent."""
    assert units.format_bytes(count) == text


@pytest.mark.parametrize(
    ("text", "usec"),
    [
        (10, 10_000_000),
        (0.5, 500_000),
        ("10", 10_000_000),
        ("0.25", 250_000),
        ("1m30s", 90_000_000),
        ("500ms", 500_000),
        ("1.5h", 5_400_000_000),
        ("1d", 86_400_000_000),
        ("7us", 7),
        ("0", 0),
    ],
)
def test_durations(text: float | str, usec: int) -> None:
    """A bare number is seconds; words add up."""
    assert units.parse_duration(text) == usec


@pytest.mark.parametrize(
    "text", ["", "s", "1m30", "-1", "1x", "1 s 2", float("nan"), float("inf"), -0.1, True, "inf"]
)
def test_what_is_no_duration_is_refused(text: float | str) -> None:
    """Nothing is guessed: a number without a unit stands alone."""
    with pytest.raises(InvalidInput, match=r"^timeout: "):
        units.parse_duration(text, field="timeout")


@given(st.integers(0, 2**62))
def test_formatted_durations_are_read_back_exactly(usec: int) -> None:
    """Formatting loses nothing."""
    assert units.parse_duration(units.format_duration(usec)) == usec


@pytest.mark.parametrize(
    ("value", "quota"), [(0.5, 50_000), ("1.5", 150_000), (2, 200_000), ("0.01", 1_000)]
)
def test_cpus_become_a_quota(value: float | str, quota: int) -> None:
    """CPU time per 100 ms."""
    assert units.parse_cpus(value) == quota
    assert float(units.format_cpus(quota)) == float(value)


@pytest.mark.parametrize("value", [0, 0.009, -1, "x", "1.5x", float("nan"), 1e9, True, ""])
def test_impossible_cpus_are_refused(value: float | str) -> None:
    """Also less than what the kernel can enforce."""
    with pytest.raises(InvalidInput, match=r"^cpus: "):
        units.parse_cpus(value)


@given(st.text(max_size=12))
def test_no_text_raises_anything_else(text: str) -> None:
    """Whatever was typed: a value or InvalidInput."""
    for parse in (units.parse_bytes, units.parse_duration, units.parse_cpus):
        with contextlib.suppress(InvalidInput):
            assert parse(text) >= 0
