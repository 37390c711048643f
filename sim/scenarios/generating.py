"""Whole nodes that answer clients while machines die."""

from __future__ import annotations

from p2pllm.domain.ids import SessionId
from sim.nodes import Answer, MachineSpec, model_spec, reference_tokens
from sim.scenario import Run, Scenario, quantile, rounded

LAYERS = 12
LAYERS_MAX = 8
"""Of one machine, so that every path has two hops or more."""

SPEED_BYTES_S = 1_000_000_000
"""Slow enough that sentences last for seconds and machines die in the middle of them."""

GATEWAYS = 2
"""Machines that clients ask; they do not crash, since their clients would be gone with them."""


def _generation(run: Run) -> None:
    nodes = run.plan.nodes
    world = run.nodes([MachineSpec(layers_max=LAYERS_MAX, speed_bytes_s=SPEED_BYTES_S)] * nodes)
    spec = model_spec(layers=LAYERS)
    for number in range(nodes):
        world.start(number)
    world.serve(0, spec)
    covered_s = run.until(lambda: world.covered(spec, nodes - 1), 120, 0.1)
    if covered_s is None:
        run.violate("requests", "the model is not served 120 s after the start")
        return
    run.figures["served_s"] = rounded(covered_s)
    # Let the placement come to rest.
    run.advance(30)
    chance = world.world.random("clients")
    asked: dict[SessionId, tuple[tuple[int, ...], int]] = {}
    began: dict[SessionId, float] = {}

    def ask(number: int) -> None:
        prompt = tuple(chance.randrange(100) for _ in range(1 + chance.randrange(20)))
        tokens = 1 + chance.randrange(int(run.number("tokens")))
        session, _ = world.ask(number, spec.id, prompt, tokens)
        asked[session], began[session] = (prompt, tokens), world.now

    began_s = world.now
    lasts_s = run.number("lasts_s")
    for _ in range(int(run.number("requests"))):
        at = began_s + lasts_s * chance.random()
        gateway = chance.randrange(GATEWAYS)
        world.world.at(at, lambda gateway=gateway: ask(gateway))
    crashes = int(run.number("crashes"))
    crashed = 0
    off: list[int] = []

    def crash() -> None:
        nonlocal crashed
        busy = _busy(world.answers, {host.node: host.number for host in world.hosts})
        victims = [n for n in busy if n >= GATEWAYS and n not in off]
        if not victims:
            # Nobody is needed at the moment; look again soon, as long as there are clients.
            if world.now < began_s + lasts_s:
                world.world.at(world.now + 0.1, crash)
            return
        number = chance.choice(victims)
        crashed += 1
        off.append(number)
        world.crash(number)
        world.world.at(world.now + run.number("away_s"), lambda: back(number))

    def back(number: int) -> None:
        off.remove(number)
        world.start(number)

    for index in range(crashes):
        world.world.at(began_s + lasts_s * (index + chance.random()) / crashes, crash)
    run.advance(lasts_s)
    ended_s = run.until(
        lambda: all(answer.ended for answer in world.answers.values()), run.number("bound_s"), 0.1
    )
    if ended_s is None:
        stuck = [s for s, answer in world.answers.items() if not answer.ended]
        run.violate("requests", f"{len(stuck)} of {len(asked)} never ended, {stuck[0][:8]} first")
    errors: list[str] = []
    for session, (prompt, tokens) in asked.items():
        answer = world.answers[session]
        expected = reference_tokens(prompt, tokens)
        if answer.tokens != expected[: len(answer.tokens)]:
            run.violate("requests", f"{session[:8]} has other tokens than the reference")
        elif answer.finish is not None and len(answer.tokens) != tokens:
            run.violate("requests", f"{session[:8]} ended with {len(answer.tokens)} of {tokens}")
        if answer.error is not None:
            errors.append(answer.error.code)
    answers = [world.answers[session] for session in asked]
    first = [
        answer.times_s[0] - began[session]
        for session, answer in world.answers.items()
        if answer.times_s
    ]
    gaps = [gap for answer in answers for gap in _gaps(answer)]
    replays = [max(_gaps(item)) for item in answers if len(item.paths) > 1 and _gaps(item)]
    run.figures |= {
        "requests": len(asked),
        "crashes": crashed,
        "answered": sum(answer.finish is not None for answer in answers),
        "errors": ", ".join(sorted(errors)) or "none",
        "replayed": len([1 for answer in answers if len(answer.paths) > 1]),
        "first_token_ms_p50": _milliseconds(quantile(first, 0.5)),
        "between_tokens_ms_p50": _milliseconds(quantile(gaps, 0.5)),
        "longest_gap_of_a_replayed_ms_p50": _milliseconds(quantile(replays, 0.5)),
        "longest_gap_of_a_replayed_ms_max": _milliseconds(quantile(replays, 1.0)),
    }
    run.advance(run.number("away_s") + 30)
    if world.caches:
        run.violate("bounded", f"{len(world.caches)} caches are left when nobody generates")
    run.settle(60)


def _gaps(answer: Answer) -> list[float]:
    return [b - a for a, b in zip(answer.times_s, answer.times_s[1:], strict=False)]


def _busy(answers: dict[SessionId, Answer], numbers: dict[str, int]) -> list[int]:
    """Machines on the path of some generation under way."""
    return sorted(
        {
            numbers[hop.node]
            for answer in answers.values()
            if not answer.ended and answer.paths
            for hop in answer.paths[-1]
        }
    )


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(1_000 * seconds, 1)


SCENARIOS = (
    Scenario(
        "generation",
        "Clients ask while machines on their paths die: every sentence goes on, token by token as "
        "one machine would have written it.",
        _generation,
        nodes=6,
        knobs={
            "requests": 30.0,
            "tokens": 200.0,
            "crashes": 3.0,
            "away_s": 40.0,
            "lasts_s": 60.0,
            "bound_s": 180.0,
        },
        nodes_min=5,
    ),
)
