"""Tiny models, each made once per test run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.engine.tiny_models import make_tiny_model
from tests.engine.walking import TinyModel


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyModel]:
    made: dict[str, TinyModel] = {}

    def make(family: str) -> TinyModel:
        if family not in made:
            folder = tmp_path_factory.mktemp("models") / family
            made[family] = TinyModel(make_tiny_model(family, folder))
        return made[family]

    return make
