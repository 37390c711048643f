from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from tests.net.certificates import Swarm


@pytest.fixture(scope="session")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Swarm:
    return Swarm(tmp_path_factory.mktemp("swarm"))


@pytest.fixture
def other_swarm(tmp_path: Path) -> Swarm:
    return Swarm(tmp_path, "other")


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run every test here on both loops."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
