from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.figures import Finding, percentile, summarise

SAMPLES = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=50)


def test_a_summary_has_the_median_and_the_extremes() -> None:
    summary = summarise([3.0, 1.0, 2.0, 10.0])
    assert (summary.median, summary.minimum, summary.maximum, summary.count) == (2.5, 1, 10, 4)


def test_nothing_cannot_be_summarised() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        summarise([])


@pytest.mark.parametrize(("percent", "expected"), [(50, 50), (99, 99), (100, 100), (0.5, 1)])
def test_a_percentile_is_the_nearest_rank(percent: float, expected: float) -> None:
    assert percentile([float(number) for number in range(100, 0, -1)], percent) == expected


@given(SAMPLES, st.floats(0.1, 100))
def test_a_percentile_is_a_sample_that_enough_others_do_not_exceed(
    samples: list[float], percent: float
) -> None:
    found = percentile(samples, percent)
    assert found in samples
    assert sum(sample <= found for sample in samples) >= len(samples) * percent / 100


@pytest.mark.parametrize(("samples", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_a_percentile_of_nothing_or_beyond_all_is_refused(
    samples: list[float], percent: float
) -> None:
    with pytest.raises(ValueError, match="percentile"):
        percentile(samples, percent)


def test_a_ratio_is_that_of_the_medians() -> None:
    finding = Finding("hop", "subject", {})
    finding.add("plain", "us", [1.0, 2.0, 30.0])
    finding.add("stream", "us", [8.0], "plain")
    assert [finding.ratio(figure) for figure in finding.figures] == [None, 4.0]


def test_a_reference_of_zero_gives_no_ratio() -> None:
    finding = Finding("swarm", "subject", {})
    finding.add("idle", "%", [0.0])
    finding.add("busy", "%", [1.0], "idle")
    assert finding.ratio(finding.figures[1]) is None


def test_a_figure_needs_samples_a_free_name_and_a_known_reference() -> None:
    finding = Finding("hop", "subject", {})
    finding.add("plain", "us", [1.0])
    with pytest.raises(ValueError, match="no samples"):
        finding.add("empty", "us", [])
    with pytest.raises(ValueError, match="already"):
        finding.add("plain", "us", [1.0])
    with pytest.raises(ValueError, match="was not measured"):
        finding.add("stream", "us", [1.0], "missing")
