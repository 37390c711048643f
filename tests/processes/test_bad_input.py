"""Whatever is wrong is said in one line, and the node that was asked goes on as if nothing was."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file, save_file

from p2pllm.app.enrol import enrol_with_invite
from p2pllm.cli.client import NodeClient
from p2pllm.cli.main import EXIT_CONFIGURATION, EXIT_REQUEST, EXIT_SWARM, exit_code
from p2pllm.domain.errors import ClientError, ModelNotFoundError, ModelRefusedError, P2PLLMError
from p2pllm.domain.ids import SwarmId
from p2pllm.domain.messages import PROTOCOL_VERSION, Goodbye, Hello
from p2pllm.security.identity import NodeIdentity
from p2pllm.security.invites import format_invite, parse_invite
from p2pllm.security.membership import load_membership
from p2pllm.security.tls import client_context
from p2pllm.wire.frames import GREETING_LIMITS, FrameDecoder, frame_parts
from tests.engine.tiny_models import make_tiny_model
from tests.processes.cluster import (
    LOCAL,
    Done,
    NodeProcess,
    Swarm,
    alive,
    cluster,
    complete,
    is_ready,
    run_command,
    sessions,
    swarm,
    wait_for_status,
)

pytestmark = [
    pytest.mark.processes,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(120),
]

MODEL = "good"
PROMPT = "All is well"


@dataclass
class Healthy:
    """The swarm that all this is done to, and what it is like when it is well."""

    swarm: Swarm
    client: NodeClient
    token_ids: list[int]
    descriptors: dict[str, int]
    model: Path

    @property
    def node(self) -> NodeProcess:
        return self.swarm.nodes["first"]

    async def peer_port(self) -> int:
        status = await self.client.status()
        own = next(member for member in status["members"] if member["self"])
        return int(own["addresses"][0].rpartition(":")[2])


@dataclass
class Poor:
    """A node of its own that has no memory for a single layer, and a prompt it was asked."""

    node: NodeProcess
    client: NodeClient
    generated: asyncio.Task[Done]


def descriptors(made: Swarm) -> dict[str, int]:
    return {
        name: len(list(Path(f"/proc/{node.process.pid}/fd").iterdir()))
        for name, node in made.nodes.items()
        if node.process is not None
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(folder: Path) -> AsyncGenerator[Healthy, None]:
    model = make_tiny_model("llama", folder / "models" / MODEL, max_position_embeddings=1_024)
    async with swarm(
        folder,
        first=("--max-layers", "4", "--model", str(model)),
        second=("--max-layers", "4"),
    ) as made:
        client = made.clients["first"]
        await wait_for_status(
            client,
            lambda status: (
                is_ready(status, MODEL)
                and all(
                    holding["state"] == "ready"
                    for member in status["members"]
                    for holding in member["holdings"]
                )
            ),
        )
        for _ in range(2):
            result = await complete(client, MODEL, PROMPT, max_tokens=8)
        assert len(result.paths[-1]) == 2
        await wait_for_status(client, lambda status: sessions(status) == 0)
        yield Healthy(made, client, result.token_ids, descriptors(made), model)


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def nothing_is_broken(running: Healthy, poor: Poor) -> AsyncIterator[None]:
    """After every test: both nodes are up, generate, hold no session and no more descriptors."""
    yield
    assert all(node.is_running for node in running.swarm.nodes.values())
    status = await wait_for_status(running.client, lambda status: sessions(status) == 0)
    assert alive(status) == {"first", "second"}
    assert [model["id"] for model in status["models"]] == [MODEL]
    result = await complete(running.client, MODEL, PROMPT, max_tokens=8)
    assert result.token_ids == running.token_ids
    # A few may be in transit: a log being written, a probe's stream being opened.
    deadline_s = asyncio.get_running_loop().time() + 15
    while any(
        count > running.descriptors[name] + 2 for name, count in descriptors(running.swarm).items()
    ):
        assert asyncio.get_running_loop().time() < deadline_s, descriptors(running.swarm)
        await asyncio.sleep(0.2)


def is_one_line(done: Done, code: int, *hints: str) -> None:
    assert done.code == code, done
    assert done.output == ""
    assert done.errors.startswith("error: "), done.errors
    assert done.errors.count("\n") == 1, done.errors
    for hint in hints:
        assert hint in done.errors


# -- models


def without_config(good: Path, folder: Path) -> None:
    shutil.copytree(good, folder)
    (folder / "config.json").unlink()


def truncated(good: Path, folder: Path) -> None:
    shutil.copytree(good, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def header_garbage(good: Path, folder: Path) -> None:
    shutil.copytree(good, folder)
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)


def misshapen(good: Path, folder: Path) -> None:
    shutil.copytree(good, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 5)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def incomplete(good: Path, folder: Path) -> None:
    shutil.copytree(good, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def pickled(good: Path, folder: Path) -> None:
    shutil.copytree(good, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def of_no_known_kind(good: Path, folder: Path) -> None:
    shutil.copytree(good, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "abacus", "architectures": ["AbacusForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))


def with_its_own_code(good: Path, folder: Path) -> None:
    of_no_known_kind(good, folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Abacus"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling.py").write_text("raise SystemExit('code of a model was run')\n")


def an_encoder(good: Path, folder: Path) -> None:
    shutil.copytree(good, folder)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "bert", "architectures": ["BertModel"], "num_hidden_layers": 2})
    )


def empty(good: Path, folder: Path) -> None:
    folder.mkdir()


@pytest.mark.parametrize(
    ("spoil", "hint"),
    [
        (without_config, "config.json"),
        (empty, "config.json"),
        (truncated, "safetensors"),
        (header_garbage, "safetensors"),
        (misshapen, "up_proj"),
        (pickled, "safetensors"),
        (of_no_known_kind, "abacus"),
        (with_its_own_code, "abacus"),
        (an_encoder, "bert"),
    ],
)
async def test_a_spoilt_model_is_refused_with_the_reason(
    spoil: Callable[[Path, Path], None], hint: str, running: Healthy, tmp_path: Path
) -> None:
    spoil(running.model, tmp_path / "spoilt")
    with pytest.raises((ModelRefusedError, ModelNotFoundError)) as caught:
        await running.client.add_model(str(tmp_path / "spoilt"))
    message = str(caught.value)
    assert hint.lower() in message.lower()
    assert "\n" not in message
    with pytest.raises(type(caught.value)):
        await running.client.plan(str(tmp_path / "spoilt"))


async def test_a_model_that_lacks_a_tensor_is_reported_and_harms_no_other(
    running: Healthy, tmp_path: Path
) -> None:
    # Only loading shows it: a checkpoint may lay its tensors out otherwise than the model does.
    incomplete(running.model, tmp_path / "lacking")
    async with cluster() as nodes:
        lone = NodeProcess(tmp_path, "lone")
        nodes.append(lone)
        await lone.start(*LOCAL, "--model", str(running.model))
        async with await lone.ready() as client:
            await wait_for_status(client, lambda status: is_ready(status, MODEL))
            await client.add_model(str(tmp_path / "lacking"))
            await lone.wait_for(
                lambda: "up_proj" in lone.log.read_text(), "nothing was said of the tensor"
            )
            assert not is_ready(await client.status(), "lacking")
            result = await complete(client, MODEL, PROMPT, max_tokens=8)
            assert result.token_ids == running.token_ids
            await client.remove_model("lacking")
            status = await client.status()
            assert [model["id"] for model in status["models"]] == [MODEL]


async def test_commands_about_what_is_not_there_exit_as_the_help_says(
    running: Healthy, tmp_path: Path
) -> None:
    where = ("--data-dir", str(running.node.data_dir))
    (tmp_path / "empty").mkdir()
    unknown, added, planned, removed, elsewhere = await asyncio.gather(
        run_command("run", "nobody", "hello", *where),
        run_command("models", "add", str(tmp_path / "empty"), *where),
        run_command("plan", "nobody", *where),
        run_command("models", "rm", "nobody", *where),
        run_command("status", "--data-dir", str(tmp_path / "none")),
    )
    is_one_line(unknown, EXIT_REQUEST, "nobody", MODEL)
    is_one_line(added, EXIT_REQUEST, "config.json")
    is_one_line(planned, EXIT_REQUEST, "nobody")
    is_one_line(removed, EXIT_REQUEST, "nobody")
    is_one_line(elsewhere, EXIT_CONFIGURATION, "p2pllm node")


# -- starting and joining


async def test_a_taken_port_or_folder_is_said_to_be(running: Healthy, tmp_path: Path) -> None:
    peers, clients = await running.peer_port(), running.client.address.port
    free = "127.0.0.1:0"
    first, second, third = await asyncio.gather(
        run_command(
            *("node", "--data-dir", str(tmp_path / "a")),
            *("--listen", f"127.0.0.1:{peers}", "--api", free),
        ),
        run_command(
            *("node", "--data-dir", str(tmp_path / "b")),
            *("--listen", free, "--api", f"127.0.0.1:{clients}", "--no-mdns"),
        ),
        run_command("node", "--data-dir", str(running.node.data_dir)),
    )
    is_one_line(first, EXIT_CONFIGURATION, str(peers), "in use")
    is_one_line(second, EXIT_CONFIGURATION, str(clients), "in use")
    is_one_line(third, EXIT_CONFIGURATION, "--data-dir")


async def test_an_invite_that_does_not_hold_lets_nobody_in(
    running: Healthy, tmp_path: Path
) -> None:
    expired = await running.client.create_invite(1, 1)
    expires_s = asyncio.get_running_loop().time() + 1.2
    once = await running.client.create_invite(1, 3_600)
    good = parse_invite(await running.client.create_invite(1, 3_600))
    foreign = format_invite(replace(good, swarm=SwarmId(good.swarm[::-1])))
    altered = format_invite(replace(good, secret=bytes(len(good.secret))))
    nowhere = format_invite(replace(good, addresses=(replace(good.addresses[0], port=1),)))

    async def join(invite: str, folder: str) -> Done:
        """As `p2pllm join` does, without the seconds that a process of its own takes to start."""
        try:
            await enrol_with_invite(tmp_path / folder, invite, folder)
        except P2PLLMError as error:
            return Done(exit_code(error), "", f"error: {error}\n")
        return Done(0, "", "")

    assert (await join(once, "joined")).code == 0
    commanded = asyncio.gather(
        run_command("join", once, "--data-dir", str(tmp_path / "late")),
        run_command("node", "--join", once, "--data-dir", str(tmp_path / "n"), *LOCAL),
    )
    await asyncio.sleep(expires_s - asyncio.get_running_loop().time())
    # One after the other: a node takes only so many strangers at once.
    results = {
        "expired": await join(expired, "expired"),
        "swarm": await join(foreign, "foreign"),
        "error": await join(altered, "altered"),
        "127.0.0.1:1": await join(nowhere, "nowhere"),
        "invite": await join("p2p1.scribble", "scribble"),
        "belongs to": await join(foreign, "joined"),
    }
    for hint, done in results.items():
        is_one_line(done, EXIT_CONFIGURATION, hint)
    for done in await commanded:
        is_one_line(done, EXIT_CONFIGURATION, "used")
    # None of it is a member now.
    assert load_membership(tmp_path / "joined", NodeIdentity.load_or_create(tmp_path / "joined"))
    assert not (tmp_path / "late" / "control.json").exists()


# -- requests


async def answer_to(running: Healthy, body: bytes | dict[str, Any], **headers: str) -> Any:
    """Status and error of a completion request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **headers}
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"http://{running.client.address}/v1/completions", data=data, headers=headers
        ) as answer,
    ):
        return answer.status, (await answer.json())["error"]


async def test_requests_that_make_no_sense_get_an_openai_error(running: Healthy) -> None:
    good: dict[str, Any] = {"model": MODEL, "prompt": "hi"}
    cases: list[tuple[bytes | dict[str, Any], int, str]] = [
        (b"{", 400, "invalid_json"),
        (b"\xff\xfe", 400, "invalid_json"),
        (b"[]", 400, "invalid_value"),
        (b"[" * 100_000, 400, "invalid_json"),
        ({"prompt": "hi"}, 400, "missing_required_parameter"),
        (good | {"model": "nobody"}, 404, "model_not_found"),
        (good | {"temperature": -1}, 400, "invalid_value"),
        (good | {"top_p": 2}, 400, "invalid_value"),
        (good | {"max_tokens": 0}, 400, "invalid_value"),
        (good | {"max_tokens": "many"}, 400, "invalid_value"),
        (good | {"n": 10_000}, 400, "invalid_value"),
        (good | {"stop": ["x"] * 100}, 400, "invalid_value"),
        (good | {"seed": 2**80}, 400, "invalid_value"),
        (good | {"logit_bias": {"128": 1}}, 400, "invalid_value"),
        (good | {"prompt": []}, 400, "invalid_value"),
        (good | {"prompt": [128]}, 400, "invalid_value"),
        (good | {"prompt": ""}, 400, "empty_prompt"),
        (good | {"prompt": "x" * 1_024}, 400, "context_length_exceeded"),
        (good | {"magic": True}, 400, "unknown_parameter"),
        (good | {"suffix": "end"}, 400, "unsupported_parameter"),
    ]
    for body, status, code in cases:
        found, error = await answer_to(running, body)
        assert (found, error["code"]) == (status, code), (body, error)
        assert error["type"] == "invalid_request_error"
        assert "\n" not in error["message"]
        assert set(error) == {"message", "type", "param", "code"}


async def test_a_client_that_goes_away_frees_every_stage(running: Healthy) -> None:
    class GoneError(Exception):
        pass

    async def see_sessions_and_go(_: object) -> None:
        raise GoneError

    options = {"max_tokens": 900, "logit_bias": {"2": -100}}
    with contextlib.suppress(GoneError):
        async with NodeClient(running.client.address, None) as client:
            await complete(client, MODEL, PROMPT, after=(3, see_sessions_and_go), **options)
    # Also while it waits for its whole answer.
    body = {"model": MODEL, "prompt": PROMPT, "temperature": 0, **options}
    async with aiohttp.ClientSession() as session:
        url = f"http://{running.client.address}/v1/completions"
        asking = asyncio.ensure_future(session.post(url, json=body))
        await wait_for_status(running.client, lambda status: sessions(status) >= 2)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    await wait_for_status(running.client, lambda status: sessions(status) == 0, timeout_s=10)


# -- peers


async def test_a_peer_of_another_protocol_version_is_told_so(
    running: Healthy, tmp_path: Path
) -> None:
    invite = await running.client.create_invite(1, 3_600)
    joined = await run_command("join", invite, "--data-dir", str(tmp_path), "--name", "newer")
    assert joined.code == 0, joined.errors
    identity = NodeIdentity.load_or_create(tmp_path)
    membership = load_membership(tmp_path, identity)
    assert membership is not None
    context = client_context(identity, membership.certificate, membership.authority, tmp_path)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", await running.peer_port(), ssl=context, server_hostname=""
    )
    newer = PROTOCOL_VERSION + 1
    hello = Hello(newer, newer + 1, identity.node_id, membership.swarm, "p2pllm 99")
    writer.writelines(frame_parts(hello, GREETING_LIMITS))
    decoder = FrameDecoder(Hello | Goodbye, GREETING_LIMITS)
    said: list[Any] = []
    async with asyncio.timeout(10):
        while data := await reader.read(65_536):
            said += decoder.feed(data)
    writer.transport.abort()
    assert isinstance(said[-1], Goodbye)
    assert "version" in said[-1].reason


async def test_noise_on_every_port_is_ignored(running: Healthy) -> None:
    port = await running.peer_port()
    noise = [
        b"",
        b"\x00" * 2_000,
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 65_536,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x07" * 600,
    ]
    for target in (port, running.client.address.port):
        for piece in noise:
            reader, writer = await asyncio.open_connection("127.0.0.1", target)
            with contextlib.suppress(OSError):
                writer.write(piece)
                await writer.drain()
                writer.write_eof()
                async with asyncio.timeout(10):
                    await reader.read(4_096)
            writer.transport.abort()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.setblocking(False)
        for piece in noise:
            udp.sendto(piece[:1_400], ("127.0.0.1", port))
        for size in range(1, 1_400, 20):
            udp.sendto(bytes((size + k) % 256 for k in range(size)), ("127.0.0.1", port))
        # Whoever cannot prove to be a member gets no answer at all.
        await asyncio.sleep(0.3)
        with pytest.raises(BlockingIOError):
            udp.recv(1)


async def test_commands_that_lack_the_token_are_refused(running: Healthy) -> None:
    async with NodeClient(running.client.address, "wrong") as stranger:
        for ask in (
            stranger.remove_model(MODEL),
            stranger.create_invite(1, 60),
        ):
            with pytest.raises(P2PLLMError) as caught:
                await ask
            assert not isinstance(caught.value, ClientError)


# -- a node without room; last, since what it is asked waits half a minute for others to come


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def poor(running: Healthy, folder: Path) -> AsyncGenerator[Poor, None]:
    async with cluster() as nodes:
        node = NodeProcess(folder, "poor")
        nodes.append(node)
        await node.start(*LOCAL, "--memory", "1KiB", "--model", str(running.model))
        async with await node.ready() as client, asyncio.TaskGroup() as tasks:
            where = ("--data-dir", str(node.data_dir))
            yield Poor(node, client, tasks.create_task(run_command("run", MODEL, "hi", *where)))


async def test_without_memory_for_a_single_layer_everything_says_so(poor: Poor) -> None:
    where = ("--data-dir", str(poor.node.data_dir))
    planned, shown, listed, generated = await asyncio.gather(
        run_command("plan", MODEL, *where),
        run_command("status", *where),
        run_command("models", "ls", *where),
        poor.generated,
    )
    is_one_line(generated, EXIT_SWARM, "0-5", MODEL)
    assert planned.code == 0
    assert "Not enough memory: layers 0-5 fit nowhere" in planned.output
    assert "layers 0-5 missing" in shown.output
    assert "layers 0-5 missing" in listed.output
    assert sessions(await poor.client.status()) == 0
    assert await poor.node.stop() == 0
