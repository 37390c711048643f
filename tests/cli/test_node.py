"""What `p2pllm node` makes of its options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from p2pllm.app import daemon
from p2pllm.app.config import NodeConfig, default_name
from p2pllm.cli.main import run
from p2pllm.domain.records import Address


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[NodeConfig, dict[str, Any]]]:
    calls: list[tuple[NodeConfig, dict[str, Any]]] = []
    monkeypatch.setattr(daemon, "run_daemon", lambda config, **more: calls.append((config, more)))
    return calls


def test_without_options_it_is_the_usual_node(
    started: list[tuple[NodeConfig, dict[str, Any]]], tmp_path: Path
) -> None:
    assert run(["node", "--data-dir", str(tmp_path)]) == 0
    assert started == [
        (NodeConfig(data_dir=tmp_path, name=default_name()), {"exit_with_stdin": False})
    ]


def test_every_option_arrives(
    started: list[tuple[NodeConfig, dict[str, Any]]], tmp_path: Path
) -> None:
    (tmp_path / "llama").mkdir()
    arguments = (
        f"node --data-dir {tmp_path} --name desk --listen 10.0.0.1:1 --api [::1]:2 "
        f"--join p2p1.x --join 10.0.0.2:3 --model builtin "
        f"--model {tmp_path}/../{tmp_path.name}/llama --memory 2GiB --max-layers 7 "
        "--threads 3 --device cpu --dtype bfloat16 --no-mdns --open"
    )
    assert run(arguments.split()) == 0
    assert started[0][0] == NodeConfig(
        data_dir=tmp_path,
        name="desk",
        listen=Address("10.0.0.1", 1),
        api=Address("::1", 2),
        join=("p2p1.x", "10.0.0.2:3"),
        models=("builtin", str(tmp_path / "llama")),
        memory_bytes=2 * 2**30,
        layers_max=7,
        threads=3,
        device="cpu",
        dtype="bfloat16",
        mdns=False,
        is_open=True,
    )
