from __future__ import annotations

import asyncio

from p2pllm.api.metrics import Metrics
from tests.api.fakes import FakeGateway, face


async def test_requests_tokens_and_times_are_counted() -> None:
    async with face(FakeGateway(text="abc")) as api:
        await api.post("/v1/completions", {"model": "fake", "prompt": "x"})
        await api.get("/somewhere/a-client/made-up")
        await api.get("/v1/models/nope")
        async with api.client.get(api.url + "/metrics") as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"].startswith("text/plain")
            lines = (await answer.text()).splitlines()
    assert 'p2pllm_http_requests_total{route="/v1/completions",status="200"} 1.0' in lines
    assert 'p2pllm_http_requests_total{route="unmatched",status="404"} 1.0' in lines
    assert 'p2pllm_http_requests_total{route="/v1/models/{id}",status="404"} 1.0' in lines
    assert "p2pllm_tokens_generated_total 4.0" in lines
    assert "p2pllm_first_token_seconds_count 1.0" in lines
    assert "p2pllm_inter_token_seconds_count 3.0" in lines
    assert "p2pllm_http_requests_running 1.0" in lines
    assert "p2pllm_generations_running 0.0" in lines
    assert not any("made-up" in line or "nope" in line for line in lines)


async def test_the_node_and_its_swarm_are_shown() -> None:
    async with face() as api, api.client.get(api.url + "/metrics") as answer:
        lines = (await answer.text()).splitlines()
    for line in (
        'p2pllm_members{state="alive"} 1.0',
        'p2pllm_members{state="suspect"} 1.0',
        'p2pllm_members{state="dead"} 0.0',
        'p2pllm_held_layers{state="ready"} 3.0',
        'p2pllm_held_layers{state="loading"} 0.0',
        "p2pllm_stage_sessions 3.0",
        "p2pllm_stage_queue_steps 2.0",
        "p2pllm_kv_free_bytes 4096.0",
        "p2pllm_stage_tokens_per_second 5.5",
    ):
        assert line in lines


async def test_the_delay_of_the_event_loop_is_measured() -> None:
    metrics, seen = Metrics(), asyncio.Event()
    observe = metrics.loop_delay.observe

    def observed(delay_s: float) -> None:
        observe(delay_s)
        seen.set()

    metrics.loop_delay.observe = observed  # type: ignore[method-assign]
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        monitor = tasks.create_task(metrics.measure_loop_delay())
        await seen.wait()
        monitor.cancel()
    assert b"p2pllm_event_loop_delay_seconds_count 1.0" in metrics.render()


def test_each_node_of_a_process_has_figures_of_its_own() -> None:
    one, two = Metrics(), Metrics()
    one.tokens.inc()
    assert b"p2pllm_tokens_generated_total 1.0" in one.render()
    assert b"p2pllm_tokens_generated_total 0.0" in two.render()
