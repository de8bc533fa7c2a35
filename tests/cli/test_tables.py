"""Tables and amounts."""

from __future__ import annotations

import pytest

from pycontain.cli.tables import ago, render_table, size


def test_columns_are_aligned_without_trailing_space() -> None:
    """Each column is as wide as its widest cell."""
    text = render_table(("ID", "NAME"), [("1", "a"), ("22222", "")])
    assert text == "ID      NAME\n1       a\n22222\n"


def test_the_widest_column_is_cut_to_the_terminal() -> None:
    """A line fits into the terminal's width; other columns stay whole."""
    text = render_table(("ID", "COMMAND"), [("1", "x" * 50)], columns=20)
    assert text.splitlines() == ["ID   COMMAND", "1    " + "x" * 14 + "…"]


def test_control_characters_are_shown_not_obeyed() -> None:
    """A hostile label or command can't move the cursor or start a new line."""
    assert "\x1b" not in render_table(("A",), [("\x1b[2J\nroot",)])
    assert "\\x1b[2J\\nroot" in render_table(("A",), [("\x1b[2J\nroot",)])


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.5, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (75, "About a minute"),
        (600, "10 minutes"),
        (3600, "About an hour"),
        (7200, "2 hours"),
        (3 * 86400, "3 days"),
        (20 * 86400, "2 weeks"),
        (100 * 86400, "3 months"),
        (800 * 86400, "2 years"),
    ],
)
def test_spans_in_dockers_words(seconds: float, words: str) -> None:
    """The rough words that `docker ps` has."""
    assert ago(seconds) == words


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0B"), (999, "999B"), (1500, "1.5kB"), (7_830_000, "7.83MB"), (None, "--")],
)
def test_sizes_in_powers_of_1000(count: int | None, text: str) -> None:
    """Disk amounts are decimal in docker; what is unknown is not 0."""
    assert size(count) == text
