from __future__ import annotations

from p2pllm.core.pace import MARGIN_S, STEP_UNKNOWN_S, Pace


def test_nothing_known_is_waited_for_generously() -> None:
    pace = Pace(None, chunk_tokens=256)
    assert pace.step_allowance_s() == STEP_UNKNOWN_S + MARGIN_S
    assert pace.prefill_allowance_s(1_000, 0) > 100


def test_a_steady_stream_is_waited_for_half_a_second_over_its_time() -> None:
    pace = Pace(0.0001, chunk_tokens=256)
    for _ in range(100):
        pace.step_took(0.05)
    assert MARGIN_S < pace.step_allowance_s() < 0.05 + MARGIN_S + 0.01


def test_an_uneven_stream_is_given_more_time() -> None:
    pace = Pace(0.0001, chunk_tokens=256)
    for count in range(100):
        pace.step_took(0.05 if count % 2 else 0.25)
    assert pace.step_allowance_s() > 0.25 + MARGIN_S


def test_a_slow_prefill_means_that_a_foreign_chunk_may_come_between() -> None:
    pace = Pace(None, chunk_tokens=256)
    pace.prefill_took(1_000, 10.0)
    pace.step_took(0.1)
    assert pace.step_allowance_s() > 256 * 0.01


def test_prefill_time_follows_what_was_observed_and_short_ones_count_as_longer() -> None:
    pace = Pace(None, chunk_tokens=256)
    assert pace.prefill_took(1, 0.64) == 0.01
    assert pace.prefill_s_per_token == 0.01
    pace.prefill_took(100, 2.0)
    assert pace.prefill_s_per_token == 0.015
    assert pace.prefill_allowance_s(1_000, 0) == 5.0 + 4 * 15.0


def test_prefill_allowances_double_with_every_timeout_up_to_a_bound() -> None:
    pace = Pace(0.01, chunk_tokens=256)
    once = pace.prefill_allowance_s(100, 0)
    assert pace.prefill_allowance_s(100, 1) == 2 * once
    assert pace.prefill_allowance_s(100, 50) == 16 * once
