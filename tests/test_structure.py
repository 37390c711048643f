"""What holds for the repository as a whole."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

NO_TEST = {
    "p2pllm/core/effects.py": "declarations; every core machine's tests compare them",
    "p2pllm/core/events.py": "declarations; every core machine's tests feed them",
    "p2pllm/net/limits.py": "declarations; the tests of streams shorten them",
    "p2pllm/api/gateway.py": "what the API asks of the node, as protocols; every API test fakes it",
    "p2pllm/api/limits.py": "declarations; the tests of guard and server shorten them",
    "p2pllm/builtin/cast.py": "word lists; the tests of plots look through them",
    "p2pllm/net/connection.py": "the tests of streams drive it over sockets",
    "p2pllm/net/incoming.py": "the tests of streams drive it over sockets",
    "p2pllm/net/outgoing.py": "the tests of streams drive it over sockets",
    "p2pllm/core/windows.py": "the tests of placement drive its search",
    "p2pllm/domain/bounds.py": "two marks on annotations; the codec's tests enforce them",
}
"""Source files that have no test of their own, and why."""

_SLASH = "/"
_PRIVATE_PATH = re.compile(rf"(?<![\w.]){_SLASH}(?:root|tmp|home{_SLASH}\w+)\b")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


@cache
def tracked() -> tuple[str, ...]:
    """Every file under version control, relative to the root."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a clone of the repository")
    command = [git, "-C", str(ROOT), "ls-files", "-z"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return tuple(name for name in listed.split("\0") if name and (ROOT / name).is_file())


def text_of(name: str) -> str | None:
    """The text of a tracked file; None where it is not text."""
    try:
        return (ROOT / name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def mirrored(source: str) -> str:
    """Where the test of `source` has to be."""
    path = Path(source)
    return str(Path("tests", *path.parts[1:-1], f"test_{path.name}"))


def sources() -> list[str]:
    """Every source file that may need a test."""
    return sorted(
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "p2pllm").rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    )


def test_every_source_file_has_its_test() -> None:
    missing = [
        f"{source} has no {mirrored(source)}"
        for source in sources()
        if source not in NO_TEST and not (ROOT / mirrored(source)).exists()
    ]
    assert missing == []


def test_only_files_that_exist_and_have_no_test_are_excused() -> None:
    known = set(sources())
    assert sorted(name for name in NO_TEST if name not in known) == []
    assert sorted(name for name in NO_TEST if (ROOT / mirrored(name)).exists()) == []


def test_every_directory_of_tests_is_a_package() -> None:
    directories = {path.parent for path in (ROOT / "tests").rglob("test_*.py")}
    assert sorted(str(path) for path in directories if not (path / "__init__.py").exists()) == []


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    found = [
        f"{name}: {match[0]}"
        for name in tracked()
        if not name.startswith(("docs/decisions/", "tests/"))
        for match in _PRIVATE_PATH.finditer(text_of(name) or "")
    ]
    assert found == []


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", without_code, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_relative_link_leads_somewhere() -> None:
    broken: list[str] = []
    pages = [name for name in tracked() if name.endswith(".md")]
    assert "README.md" in pages
    for name in pages:
        page = ROOT / name
        text = re.sub(r"^```.*?^```", "", text_of(name) or "", flags=re.DOTALL | re.MULTILINE)
        for target in _LINK.findall(text):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            if not there.exists() or (anchor and anchor not in anchors(there.read_text("utf-8"))):
                broken.append(f"{name}: {target}")
    assert broken == []
