"""Where a model's folder comes from; the hub is a small server on this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from p2pllm.domain.errors import ModelNotFoundError, ModelRefusedError
from p2pllm.weights.checkpoint import open_checkpoint
from p2pllm.weights.references import References, name_of
from tests.weights.test_checkpoint import write_checkpoint, write_sharded

COMMIT = "c" * 40


class Hub:
    """As much of the hub as a download needs."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.failing = False
        self.requested: list[str] = []

    def application(self) -> web.Application:
        application = web.Application()
        application.router.add_get("/api/models/{owner}/{name}", self.info)
        application.router.add_get("/api/models/{owner}/{name}/revision/{revision}", self.info)
        application.router.add_get("/{owner}/{name}/resolve/{revision}/{file}", self.file)
        return application

    def _refusal(self, hub_id: str) -> web.Response | None:
        if self.failing:
            return web.Response(status=503)
        if hub_id in self.gated:
            return web.json_response(
                {"error": "gated"}, status=403, headers={"X-Error-Code": "GatedRepo"}
            )
        if hub_id not in self.models:
            return web.json_response(
                {"error": "none"}, status=404, headers={"X-Error-Code": "RepoNotFound"}
            )
        return None

    async def info(self, request: web.Request) -> web.Response:
        hub_id = f"{request.match_info['owner']}/{request.match_info['name']}"
        refusal = self._refusal(hub_id)
        if refusal is not None:
            return refusal
        siblings: list[dict[str, Any]] = [
            {"rfilename": name, "size": len(data)} for name, data in self.models[hub_id].items()
        ]
        return web.json_response({"id": hub_id, "sha": COMMIT, "siblings": siblings})

    async def file(self, request: web.Request) -> web.Response:
        hub_id = f"{request.match_info['owner']}/{request.match_info['name']}"
        refusal = self._refusal(hub_id)
        if refusal is not None:
            return refusal
        name = request.match_info["file"]
        self.requested.append(name)
        data = self.models[hub_id].get(name)
        if data is None:
            return web.Response(status=404, headers={"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        return web.Response(body=data, headers=headers)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
async def references(hub: Hub, tmp_path: Path) -> AsyncIterator[References]:
    async with TestServer(hub.application()) as server:
        endpoint = str(server.make_url("/")).rstrip("/")
        builtin = {"builtin": tmp_path / "inside"}
        yield References(builtin, cache=tmp_path / "cache", endpoint=endpoint)


async def test_builtin_is_the_folder_that_was_given(references: References, tmp_path: Path) -> None:
    assert await references.resolve("builtin") == tmp_path / "inside"


async def test_a_folder_is_itself(references: References, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "here")
    assert await references.resolve(str(folder)) == folder


async def test_a_missing_folder_is_named(references: References) -> None:
    with pytest.raises(ModelNotFoundError, match="no folder /no/such/place"):
        await references.resolve("/no/such/place")


async def test_nonsense_is_told_apart_from_a_missing_model(references: References) -> None:
    for reference in ("what is this", "", "a\0b", "x" * 5_000, "a/b/c"):
        with pytest.raises(ModelNotFoundError, match="folder, or owner/name"):
            await references.resolve(reference)


async def test_a_hub_model_is_fetched_and_opens(
    hub: Hub, references: References, tmp_path: Path
) -> None:
    local = write_checkpoint(tmp_path / "local")
    hub.models["owner/name"] = {
        **files_of(local),
        "tokenizer.json": b"{}",
        "README.md": b"hello",
    }
    told: list[tuple[int, int, str]] = []
    folder = await references.resolve(
        "owner/name", on_progress=lambda *progress: told.append(progress)
    )
    assert open_checkpoint(folder).fingerprint == open_checkpoint(local).fingerprint
    assert (folder / "tokenizer.json").read_bytes() == b"{}"
    assert "README.md" not in hub.requested
    assert told[-1][0] == told[-1][1] > 0
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert {"config.json", "model.safetensors"} <= {file for _, _, file in told}


async def test_pickles_are_never_asked_for(
    hub: Hub, references: References, tmp_path: Path
) -> None:
    hub.models["owner/name"] = {
        **files_of(write_checkpoint(tmp_path / "local")),
        "pytorch_model.bin": b"pickle",
        "model.pt": b"pickle",
        "training_args.bin": b"pickle",
    }
    folder = await references.resolve("owner/name")
    assert sorted(set(hub.requested)) == ["config.json", "model.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


async def test_just_the_shards_that_the_index_names_are_fetched(
    hub: Hub, references: References, tmp_path: Path
) -> None:
    hub.models["owner/name"] = {
        **files_of(write_sharded(tmp_path / "local")),
        "consolidated.safetensors": b"the same weights again",
    }
    folder = await references.resolve("owner/name")
    assert len(open_checkpoint(folder).tensors) == 2
    assert "consolidated.safetensors" not in hub.requested


async def test_a_model_of_pickles_alone_is_refused_before_anything_is_fetched(
    hub: Hub, references: References
) -> None:
    hub.models["owner/name"] = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    with pytest.raises(ModelRefusedError, match=r"pytorch_model\.bin, a pickle"):
        await references.resolve("owner/name")
    assert hub.requested == []


async def test_an_index_that_names_a_file_the_hub_lacks_is_refused(
    hub: Hub, references: References
) -> None:
    index = json.dumps({"weight_map": {"a": "../../escape.safetensors"}}).encode()
    hub.models["owner/name"] = {"config.json": b"{}", "model.safetensors.index.json": index}
    with pytest.raises(ModelRefusedError, match="escape"):
        await references.resolve("owner/name")


async def test_an_unknown_model_says_what_to_do(references: References) -> None:
    with pytest.raises(ModelNotFoundError, match="check the name"):
        await references.resolve("owner/unknown")


async def test_a_gated_model_says_so(hub: Hub, references: References) -> None:
    hub.gated.add("owner/gated")
    with pytest.raises(ModelNotFoundError, match="gated"):
        await references.resolve("owner/gated")


async def test_an_unreachable_hub_says_so(tmp_path: Path) -> None:
    references = References({}, cache=tmp_path / "cache", endpoint="http://127.0.0.1:9")
    with pytest.raises(ModelNotFoundError, match="cannot be reached"):
        await references.resolve("owner/name")


async def test_what_was_fetched_before_serves_while_the_hub_is_down(
    hub: Hub, references: References, tmp_path: Path
) -> None:
    hub.models["owner/name"] = files_of(write_checkpoint(tmp_path / "local"))
    folder = await references.resolve("owner/name")
    hub.failing = True
    assert await references.resolve("owner/name") == folder


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("builtin", "builtin"),
        ("owner/name", "owner/name"),
        ("/models/Llama 3 (8B)", "Llama-3-8B-"),
        ("./.hidden", "hidden"),
    ],
)
def test_a_model_is_named_after_its_reference(reference: str, name: str) -> None:
    assert name_of(reference) == name


def test_a_reference_without_a_name_asks_for_one() -> None:
    with pytest.raises(ModelNotFoundError, match="name it"):
        name_of("/")
