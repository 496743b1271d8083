"""Graders: tables of what people write, and properties that hold for every text."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.graders import as_number, exactly_equal, last_number, normalise, numerically_equal, tagged
from tasks.graders.extract import numbers


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("so 3 + 4 = 7.", "7"),
        ("5-3", "3"),
        ("3 - 5", "5"),
        ("= -3", "-3"),
        ("x=-3.", "-3"),
        ("The total is $1,234.50.", "$1,234.50"),
        ("that leaves −7", "−7"),
        ("1,2,3", "3"),
        ("about 3/4", "3/4"),
        (r"\frac{3}{4}", "3/4"),
        (r"-\frac{3}{4}", "-3/4"),
        (r"\boxed{42}", "42"),
        (r"\boxed{1,234}", "1,234"),
        (r"\$18", "$18"),
        ("#### 72", "72"),
        ("**72**", "72"),
        ("50%", "50%"),
        ("6.02e23", "6.02e23"),
        (".5", ".5"),
        ("7km", "7"),
        ("and ...7", "7"),
        ("10-20", "20"),
        ("x2 and v1.2", None),
        ("no number", None),
        ("", None),
    ],
)
def test_last_number(text: str, last: str | None) -> None:
    assert last_number(text) == last


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("12.", 12),
        (" 12 ", 12),
        ("-12", -12),
        ("- 12", -12),
        ("+12", 12),
        ("−12", -12),
        ("1,234,567", 1234567),
        ("$1,200.50", Fraction(2401, 2)),
        ("-$5", -5),
        (".5", Fraction(1, 2)),
        ("5.", 5),
        ("3/4", Fraction(3, 4)),
        ("-3 / 4", Fraction(-3, 4)),
        ("1e3", 1000),
        ("50%", Fraction(1, 2)),
        ("3/0", None),
        ("1,23", None),
        ("12 apples", None),
        ("nan", None),
        ("inf", None),
        ("1_000", None),
        ("٣", None),
        ("", None),
        ("-", None),
        ("1e999999999", None),
        ("9" * 5000, None),
    ],
)
def test_as_number(text: str, value: Fraction | int | None) -> None:
    assert as_number(text) == value


@pytest.mark.parametrize(
    ("answer", "gold", "equal"),
    [
        ("18", "18", True),
        ("18.0", "18", True),
        ("$18.", "18", True),
        ("1,000", "1000", True),
        ("0.5", "1/2", True),
        ("0.333333", "1/3", True),
        ("0.33", "1/3", False),
        ("123456790", "123456789", False),
        ("50%", "0.5", True),
        ("50%", "50", True),
        ("50", "50%", True),
        ("0.5", "50%", True),
        ("50%", "5000", False),
        ("5", "50%", False),
        ("18", "-18", False),
        ("eighteen", "18", False),
        ("", "", False),
    ],
)
def test_numerically_equal(answer: str, gold: str, equal: bool) -> None:
    assert numerically_equal(answer, gold) is equal


@pytest.mark.parametrize(
    ("answer", "gold", "equal"),
    [
        ("Paris", "paris", True),
        (" new   york.", "New York", True),
        ('"yes"', "yes", True),
        ("`f(x)`", "f(x)", True),
        ("A", "B", False),
        ("a b", "ab", False),
        ("-1", "1", False),
    ],
)
def test_exactly_equal(answer: str, gold: str, equal: bool) -> None:
    assert exactly_equal(answer, gold) is equal


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("<answer>4</answer>", "4"),
        ("<answer>3</answer> no, <answer> 4 </answer> done", "4"),
        ("<answer><answer>4</answer>", "4"),
        ("<answer>4", None),
        ("4</answer>", None),
        ("<answer>3</answer> <answer>4", "3"),
        ("<answer></answer>", ""),
    ],
)
def test_tagged(text: str, inside: str | None) -> None:
    assert tagged(text) == inside


@given(st.text())
def test_no_text_breaks_a_grader(text: str) -> None:
    last_number(text)
    as_number(text)
    tagged(text)
    assert exactly_equal(text, text)
    assert not numerically_equal(text, "x")


@given(st.text(alphabet="0123456789.,/%$-+ eE\\{}frac<>", max_size=60))
def test_what_is_found_is_part_of_the_text_and_mostly_a_number(text: str) -> None:
    for found in numbers(text):
        assert any(c.isdigit() for c in found)
        assert as_number(found) is not None or "/" in found or "e" in found.lower()  # 1/0, 1e9999


@given(st.integers(-(10**12), 10**12))
def test_a_whole_number_is_read_back_in_every_spelling(value: int) -> None:
    for text in (f"{value}", f"{value:,}", f"{value}.0", f"the answer is {value}.", f"${value:,}.", f"({value})"):
        found = last_number(text)
        assert found is not None
        assert as_number(found) == value
        assert numerically_equal(found, str(value))
        assert not numerically_equal(found, str(value + 1))


@given(st.fractions(max_denominator=1000), st.text(alphabet="abc =:", max_size=10))
def test_a_fraction_is_read_back_after_any_words(value: Fraction, words: str) -> None:
    found = last_number(f"{words} {value}")
    assert found is not None
    assert as_number(found) == value


@given(st.text())
def test_normalise_is_stable_on_its_own_result_up_to_quotes(text: str) -> None:
    once = normalise(text)
    assert exactly_equal(once, once)
    assert once == once.strip()
