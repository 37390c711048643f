from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from bench.figures import Finding
from bench.machine import Machine, look_at_machine
from bench.report import number, print_machine, row, to_json, to_table


def machine(busy_percent: float = 0.0) -> Machine:
    return Machine("Linux", "a processor", 2, 0.1, busy_percent, "3.11", "2.6", "5.0")


def finding() -> Finding:
    made = Finding("hop", "a small one", {"runs": 3})
    made.add("plain", "us", [10.0, 12.0, 11.0])
    made.add("stream", "us", [22.0], "plain")
    return made


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.5, "1,234"), (12.34, "12.3"), (1.234, "1.23"), (0.01234, "0.012"), (-12.34, "-12.3")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_a_row_begins_with_the_ratio_and_names_what_it_is_of() -> None:
    made = finding()
    assert row(made, made.figures[0]) == ("", "plain", "11.0", "10.0..12.0 (3)", "us", "")
    assert row(made, made.figures[1]) == ("2.00", "stream", "22.0", "", "us", "plain")


def test_a_table_shows_figures_and_settings() -> None:
    output = io.StringIO()
    Console(file=output, width=120).print(to_table(finding()))
    text = output.getvalue()
    assert "hop: a small one" in text
    assert "runs 3" in text
    assert "2.00" in text


def test_the_document_has_machine_and_figures() -> None:
    document = json.loads(to_json(machine(), [finding()], 1.25))
    assert document["version"] == 1
    assert document["machine"]["idle"] is True
    (found,) = document["findings"]
    assert found["question"] == "hop"
    assert found["settings"] == {"runs": 3}
    assert found["figures"] == [
        {
            "name": "plain",
            "unit": "us",
            "median": 11.0,
            "min": 10.0,
            "max": 12.0,
            "runs": 3,
            "against": None,
            "ratio": None,
        },
        {
            "name": "stream",
            "unit": "us",
            "median": 22.0,
            "min": 22.0,
            "max": 22.0,
            "runs": 1,
            "against": "plain",
            "ratio": 2.0,
        },
    ]


def test_a_busy_machine_is_said_to_be_one() -> None:
    output = io.StringIO()
    print_machine(Console(file=output, width=200), machine(busy_percent=60.0))
    assert "not idle: 60 %" in output.getvalue()
    assert machine(busy_percent=5.0).warning is None


def test_this_machine_can_be_described() -> None:
    found = look_at_machine()
    assert found.cores >= 1
    assert 0 <= found.busy_percent <= 100
