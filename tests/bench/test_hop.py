from __future__ import annotations

import json

import pytest

from bench import hop
from bench.__main__ import main


async def test_a_hop_is_timed_between_two_processes() -> None:
    (finding,) = await hop.measure(rounds=20, runs=2)
    names = [figure.name for figure in finding.figures]
    assert sum("plain TCP" in name for name in names) == 4
    assert sum("peer stream" in name for name in names) == 4
    for figure in finding.figures:
        assert figure.summary.count == 2
        assert figure.summary.minimum > 0
        ratio = finding.ratio(figure)
        assert (ratio is None) == figure.name.startswith("plain")


def test_the_command_prints_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hop", "--json", "--rounds", "20", "--runs", "1"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [finding["question"] for finding in document["findings"]] == ["hop"]


def test_an_unknown_question_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["weather"])
    assert "weather" in capsys.readouterr().err
