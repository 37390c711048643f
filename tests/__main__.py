"""Every check of the project, in the order in which they fail fastest: `python -m tests`.

Arguments are passed on to pytest (`python -m tests -k routing`); `--only NAME` runs one check.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ["p2pllm", "sim", "bench", "tests"]


def checks(pytest_arguments: list[str]) -> dict[str, list[str]]:
    """The command of each check; all are run from the root of the project."""
    scripts = Path(sys.executable).parent
    python = sys.executable
    return {
        "format": [python, "-m", "ruff", "format", "--check", *SOURCES],
        "lint": [python, "-m", "ruff", "check", *SOURCES],
        "imports": [str(scripts / "lint-imports"), "--no-cache"],
        "types": [str(scripts / "basedpyright"), "--warnings", "--pythonpath", python],
        "tests": [
            python,
            "-m",
            "pytest",
            "-q",
            "--numprocesses=2",
            "--dist=loadscope",
            *pytest_arguments,
        ],
    }


def main() -> int:
    """Run the checks; the exit code is the number of those that failed."""
    parser = argparse.ArgumentParser(prog="python -m tests", description=__doc__)
    parser.add_argument("--only", help="run just this check: format, lint, imports, types, tests")
    options, pytest_arguments = parser.parse_known_args()
    # One thread per process: the tests run two processes on what may be two cores.
    environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"} | dict(os.environ)
    outcomes: dict[str, tuple[bool, float]] = {}
    for name, command in checks(pytest_arguments).items():
        if options.only not in (None, name):
            continue
        print(f"== {name}", flush=True)
        started = time.monotonic()
        finished = subprocess.run(command, cwd=ROOT, env=environment, check=False)
        outcomes[name] = (finished.returncode == 0, time.monotonic() - started)
    if not outcomes:
        parser.error(f"no check is called {options.only}")
    print()
    for name, (passed, elapsed_s) in outcomes.items():
        print(f"{'passed' if passed else 'FAILED'}  {name:<8} {elapsed_s:6.1f} s")
    return sum(not passed for passed, _ in outcomes.values())


if __name__ == "__main__":
    sys.exit(main())
