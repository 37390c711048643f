"""The command line of the simulator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from p2pllm.core.swarm import Swarm
from sim import __main__ as command
from sim.scenarios import SCENARIOS
from sim.search import plan_of
from sim.targets import targets

RUN = ["run", "partition", "--nodes", "5", "--loss", "0.1", "--seed", "7"]
RUN += ["--set", "lasts_s=10", "--set", "kind=bridge"]


def test_a_run_prints_a_summary_that_says_how_to_see_it_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command.main([*RUN, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["scenario"] == "partition"
    assert summary["violations"] == []
    assert summary["figures"]["heal_s"] is not None
    assert summary["events"] > 0
    replay = summary["replay"].split()
    assert replay[:3] == ["python", "-m", "sim"]
    assert command.main([*replay[3:], "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    del summary["wall_s"], again["wall_s"]
    assert again == summary


def test_a_run_for_people_has_figures_and_targets(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["run", "convergence", "--nodes", "4", "--set", "updates=2"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("convergence: 4 nodes, seed 1, loss 0%\n")
    assert "(at most 6: met)" in shown


def test_the_summary_can_be_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([*RUN, "--out", str(tmp_path / "new")]) == 0
    kept = json.loads((tmp_path / "new" / "partition-n5-s7.json").read_text())
    assert kept["trace"] in capsys.readouterr().out


def test_a_violation_is_shown_with_the_line_that_shows_it_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Swarm, "_read_own", lambda self, headline, source, now: [])
    line = "run partition --nodes 4 --seed 2 --set bound_s=30 --set lasts_s=30"
    assert command.main(line.split()) == 1
    shown = capsys.readouterr()
    assert "VIOLATED liveness" in shown.out
    assert f"python -m sim {line}" in shown.err


@pytest.mark.parametrize(
    "line",
    [
        "run nowhere",
        "run partition --set kind",
        "run partition --nodes 1",
        "search --seeds 5",
        "search --seeds 5..5",
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(line.split()) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_all_scenarios_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(scenario.shows in shown for scenario in SCENARIOS.values())


def test_a_search_goes_through_seeds_and_scenarios(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["search", "--seeds", "0..3", "--scenario", "join-storm"]) == 0
    assert capsys.readouterr().out == "3 runs, 0 of them with violations\n"


def test_a_search_finds_nodes_that_do_not_refute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Swarm, "_read_own", lambda self, headline, source, now: [])
    assert command.main(["search", "--seeds", "0..4", "--scenario", "laptop-sleep"]) == 1
    assert "python -m sim run laptop-sleep --nodes " in capsys.readouterr().out


def test_a_search_tries_every_kind_of_trouble() -> None:
    plans = [plan_of(SCENARIOS["partition"], seed) for seed in range(60)]
    assert len({plan.values["kind"] for plan in plans}) == 5
    assert {plan.loss for plan in plans} >= {0.0, 0.3}
    assert min(plan.nodes for plan in plans) == SCENARIOS["partition"].nodes_min
    assert plan_of(SCENARIOS["churn"], 9) == plan_of(SCENARIOS["churn"], 9)


def test_targets_are_those_of_the_next_size() -> None:
    assert targets("convergence", 10, 0.1) == {"rounds_to_99_percent_p50": 6}
    assert targets("convergence", 11, 0.3) == {"rounds_to_99_percent_p50": 12}
    assert targets("convergence", 10, 0.5) == {}
    assert targets("steady", 1_000, 0.2) == {
        "false_deaths_per_node_hour": 0.05,
        "sent_kb_s_per_node": 32,
    }
    assert targets("detection", 20_000, 0.0) == {}
    assert targets("churn", 10, 0.0) == {}


@pytest.mark.parametrize("scenario", ["churn", "generation"])
def test_a_trace_follows_from_the_seed_in_any_process_and_under_any_hash_seed(
    scenario: str,
) -> None:
    line = ["run", scenario, "--nodes", "6", "--loss", "0.1", "--json"]
    if scenario == "churn":
        line += ["--set", "minutes=0.5", "--set", "per_minute=2", "--set", "away_s=5"]
    else:
        line += ["--set", "requests=4", "--set", "lasts_s=5", "--set", "crashes=1"]
    summaries: list[dict[str, object]] = []
    for hash_seed in ("1", "2"):
        finished = subprocess.run(
            [sys.executable, "-m", "sim", *line],
            env=dict(os.environ, PYTHONHASHSEED=hash_seed, PYTHONPATH=os.getcwd()),
            capture_output=True,
            text=True,
            check=True,
        )
        summaries.append(json.loads(finished.stdout))
        del summaries[-1]["wall_s"]
    assert summaries[0] == summaries[1]
    assert len(str(summaries[0]["trace"])) == 32
