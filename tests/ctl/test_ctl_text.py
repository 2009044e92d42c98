"""How values read, and what untrusted text becomes."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from ctl.text import cells, clip, duration, parse_seconds, plural, printable, screen_line, size, table


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("30s", 30), ("1.5h", 5400), ("5min", 300), ("2m", 120), ("250ms", 0.25), ("1d", 86400)],
)
def test_durations_are_read_with_their_unit(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 year", "1h30", "nan", "1e3"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="write it like 30s"):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (-1, "0.0s"),
        (0.04, "0.0s"),
        (9.94, "9.9s"),
        (9.96, "10s"),
        (59.6, "1m 00s"),
        (185, "3m 05s"),
        (7620, "2h 07m"),
        (273_600, "3d 04h"),
    ],
)
def test_durations_read_in_the_two_largest_units(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (10_240, "10 KiB"),
        (1 << 20, "1.0 MiB"),
        (1 << 41, "2.0 TiB"),
    ],
)
def test_sizes_read_in_binary_units(count: int | None, text: str) -> None:
    assert size(count) == text


@given(st.text())
def test_nothing_a_terminal_acts_on_is_left_in_printable_text(text: str) -> None:
    assert printable(text).isprintable()


@given(st.text())
def test_a_screen_line_is_one_printable_line(text: str) -> None:
    assert screen_line(text).isprintable()


def test_printable_text_stays_as_it_is_and_the_rest_is_shown() -> None:
    assert printable("zlib 1.3 ✓ 日本語") == "zlib 1.3 ✓ 日本語"
    assert printable("a\x1b[2Jb\n\u202egnp") == "a\\x1b[2Jb\\n\\u202egnp"
    assert printable("a\nb\x07", keep="\n") == "a\nb\\x07"


@pytest.mark.parametrize(
    ("raw", "seen"),
    [
        ("\x1b[1;31merror:\x1b[0m no\r\n", "error: no"),
        ("10 %\r 50 %\r100 %", "100 %"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("a\tb", "a  b"),
        ("cut \x1b[3", "cut"),
        ("\x1b(Bplain", "plain"),
    ],
)
def test_a_screen_line_is_what_the_screen_would_show(raw: str, seen: str) -> None:
    assert screen_line(raw) == seen


def test_columns_of_a_terminal_are_counted_as_it_draws_them() -> None:
    assert cells("abc") == 3
    assert cells("漢字") == 4
    assert cells("e\u0301") == 1
    assert clip("漢字漢字", 5) == "漢字…"
    assert clip("漢字漢字", 6) == "漢字…"
    assert clip("漢字", 4) == "漢字"
    assert clip("abc", 2, "...") == ""


def test_clipped_text_says_so() -> None:
    assert clip("abcdef", 6) == "abcdef"
    assert clip("abcdef", 4) == "abc…"


def test_tables_align_and_show_control_characters() -> None:
    assert table(("NAME", "N"), [("a", "10"), ("b\x07c", "5")], right=(1,)) == [
        "NAME     N",
        "a       10",
        "b\\x07c   5",
    ]


def test_one_thing_is_not_plural() -> None:
    assert (plural(1, "wave"), plural(2, "wave"), plural(0, "wave")) == ("1 wave", "2 waves", "0 waves")
