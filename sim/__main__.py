"""`python -m sim`: run a scenario, list them, or search seeds for violations.

    python -m sim list
    python -m sim run convergence --nodes 100 --loss 0.1 --seed 7
    python -m sim run partition --set kind=ring --json
    python -m sim search --seeds 0..200

The exit code is 0 where all oracles hold, 1 where one is violated, 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sim.scenario import Outcome, Plan, Run, UsageError
from sim.scenarios import SCENARIOS, scenario_of
from sim.search import search
from sim.targets import compared

Report = Callable[[str], None]


def run(plan: Plan, report: Report) -> Outcome:
    """One run.

    Raises:
        UsageError: the plan names what does not exist.
    """
    scenario = scenario_of(plan.scenario)
    return Run(plan, scenario, report).play(scenario)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sim",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the scenarios, and what may be set in each")
    one = commands.add_parser("run", help="run one scenario")
    one.add_argument("scenario", metavar="SCENARIO", help="see `python -m sim list`")
    one.add_argument("--nodes", type=int, metavar="N", help="how many machines")
    one.add_argument("--seed", type=int, default=1, metavar="S", help="decides everything")
    one.add_argument("--loss", type=float, default=0.0, metavar="P", help="share of packets lost")
    one.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="see `python -m sim list`"
    )
    one.add_argument("--json", action="store_true", help="print the summary as JSON")
    one.add_argument("--out", type=Path, metavar="DIR", help="write the summary there too")
    many = commands.add_parser("search", help="hunt for violations of the oracles")
    many.add_argument("--seeds", required=True, metavar="A..B", help="from A up to, not with, B")
    many.add_argument(
        "--scenario", action="append", metavar="NAME", help="of these alone; may be repeated"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit code."""
    options = _parser().parse_args(arguments)
    # Millions of long-lived objects: looking through them all too often costs a fifth of the time.
    gc.set_threshold(200_000, 20, 50)
    try:
        if options.command == "list":
            sys.stdout.write(_listed())
            return 0
        if options.command == "search":
            return _search(options.seeds, options.scenario)
        values = dict(_pair(text) for text in options.set)
        scenario = scenario_of(options.scenario)
        nodes = scenario.nodes if options.nodes is None else options.nodes
        plan = Plan(scenario.name, nodes, options.seed, options.loss, values)
        outcome = run(plan, _progress)
    except UsageError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return _show(outcome, as_json=options.json, folder=options.out)


def summary_of(outcome: Outcome) -> dict[str, object]:
    """What `--json` prints."""
    plan = outcome.plan
    summary = outcome.as_dict()
    summary["targets"] = compared(plan.scenario, plan.nodes, plan.loss, outcome.figures)
    return summary


def _show(outcome: Outcome, *, as_json: bool, folder: Path | None) -> int:
    summary = summary_of(outcome)
    text = json.dumps(summary, indent=2) + "\n"
    if folder is not None:
        plan = outcome.plan
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{plan.scenario}-n{plan.nodes}-s{plan.seed}.json"
        (folder / name).write_text(text, encoding="utf-8")
    sys.stdout.write(text if as_json else _table(outcome))
    if not outcome.violations:
        return 0
    sys.stderr.write(f"violated; see it again with:\n{outcome.plan.command}\n")
    return 1


def _table(outcome: Outcome) -> str:
    plan = outcome.plan
    targets = compared(plan.scenario, plan.nodes, plan.loss, outcome.figures)
    lines = [f"{plan.scenario}: {plan.nodes} nodes, seed {plan.seed}, loss {plan.loss:.0%}"]
    for name, value in outcome.figures.items():
        target = targets.get(name)
        aim = ""
        if target is not None:
            aim = f"   (at most {target['at_most']}: {'met' if target['met'] else 'MISSED'})"
        lines.append(f"  {name.replace('_', ' '):<36} {'-' if value is None else value}{aim}")
    lines += [f"  VIOLATED {v.oracle} at {v.at_s} s: {v.detail}" for v in outcome.violations]
    lines.append(
        f"  {outcome.events:,} events in {outcome.virtual_s:.1f} virtual and "
        f"{outcome.wall_s:.1f} real seconds; trace {outcome.trace}"
    )
    return "\n".join(lines) + "\n"


def _listed() -> str:
    lines: list[str] = []
    for scenario in SCENARIOS.values():
        knobs = " ".join(f"{name}={value}" for name, value in scenario.knobs.items())
        lines += [f"{scenario.name} ({scenario.nodes} nodes)", f"  {scenario.shows}", f"  {knobs}"]
    return "\n".join(lines) + "\n"


def _search(seeds: str, names: list[str] | None) -> int:
    match = re.fullmatch(r"(\d+)\.\.(\d+)", seeds)
    if match is None or int(match[1]) >= int(match[2]):
        raise UsageError("--seeds is A..B, with A less than B")
    scenarios = [scenario_of(name) for name in names or SCENARIOS]
    found = 0
    runs = 0
    for outcome in search(range(int(match[1]), int(match[2])), scenarios, _progress):
        runs += 1
        if runs % len(scenarios) == 0:
            _progress(f"{runs} runs, {found} of them with violations")
        if outcome.violations:
            found += 1
            violation = outcome.violations[0]
            sys.stdout.write(
                f"{violation.oracle} at {violation.at_s} s: {violation.detail}\n"
                f"  {outcome.plan.command}\n"
            )
            sys.stdout.flush()
    sys.stdout.write(f"{runs} runs, {found} of them with violations\n")
    return 1 if found else 0


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name or not value:
        raise UsageError(f"--set takes key=value, not {text!r}")
    return name, value


def _progress(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
