"""How a node finds a model's files, and what it says where it cannot."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from p2pllm.app.models import BUILTIN, ModelLibrary, references
from p2pllm.domain.errors import ModelNotFoundError, ModelRefusedError
from p2pllm.weights.references import References
from tests.engine.tiny_models import LAYERS, make_tiny_model


def library(*own: str) -> ModelLibrary:
    return ModelLibrary(References({}), own)


async def test_a_folder_is_described_under_its_own_name_or_a_given_one(tiny_folder: Path) -> None:
    found = await library().describe(str(tiny_folder))
    assert found.spec.id == "tiny"
    assert found.spec.num_layers == LAYERS
    assert found.spec.reference == str(tiny_folder)
    assert (await library().describe(str(tiny_folder), "mine/own")).spec.id == "mine/own"


async def test_a_name_that_cannot_stand_in_a_url_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(ModelRefusedError, match="--name"):
        await library().describe(str(tiny_folder), "../etc")


async def test_the_model_of_another_node_is_found_in_this_nodes_own_folder(
    tiny_folder: Path, tmp_path: Path
) -> None:
    theirs = (await library().describe(str(tiny_folder), "theirs")).spec
    shutil.copytree(tiny_folder, tmp_path / "copy")
    elsewhere = replace(theirs, reference="/not/on/this/machine")
    ours = library(str(tmp_path / "copy"))
    found = await ours.find(elsewhere)
    assert found.checkpoint.folder == tmp_path / "copy"
    assert await ours.find(elsewhere) is found


async def test_files_of_another_version_are_not_taken(tiny_folder: Path, tmp_path: Path) -> None:
    theirs = (await library().describe(str(tiny_folder))).spec
    other = make_tiny_model("llama", tmp_path / "other", intermediate_size=48)
    with pytest.raises(ModelNotFoundError, match=r"another model or version.*--model FOLDER"):
        await library(str(other)).find(replace(theirs, reference="/not/on/this/machine"))


async def test_a_tokenizer_is_loaded_once_until_the_model_is_forgotten(tiny_folder: Path) -> None:
    models = library()
    spec = (await models.describe(str(tiny_folder))).spec
    tokenizer = await models.tokenizer(spec)
    assert tokenizer.decode(tokenizer.encode("hi")) == "hi"
    assert await models.tokenizer(spec) is tokenizer
    models.forget_except([spec])
    assert await models.tokenizer(spec) is tokenizer
    models.forget_except([])
    assert await models.tokenizer(spec) is not tokenizer


async def test_the_builtin_model_has_a_name_of_its_own() -> None:
    spec = (await ModelLibrary(references()).describe(BUILTIN)).spec
    assert (spec.id, spec.reference) == (BUILTIN, BUILTIN)
