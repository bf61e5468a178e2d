"""What is made of the numbers: medians, ratios within rounds, intervals; and that a result survives its file."""

import msgspec
import numpy as np
import pytest

from monitor.bench.result import STOCK, Ratio, Result, median_ratio, summarise
from tests.harness.benchmark_results import result


def test_the_ratio_is_taken_within_rounds():
    """The machine is ten times slower in some rounds; the arm always takes 2% more."""
    stock = [100.0, 10.0, 90.0, 9.0, 110.0, 11.0]
    ratio = median_ratio(stock, [0.98 * rate for rate in stock])
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((0.98, 0.98, 0.98))


def test_a_round_that_went_wrong_does_not_decide():
    stock = [100.0] * 9
    ratio = median_ratio(stock, [97.0, 98.0, 99.0, 98.0, 97.0, 99.0, 98.0, 98.0, 1.0])
    assert ratio.median == 0.98
    assert ratio.low >= 0.97


@pytest.mark.parametrize("rounds", [10, 30])
def test_the_interval_holds_the_median_as_often_as_it_says(rounds):
    """Over 300 benchmarks of skewed noise; a bootstrap of few rounds falls short of 95%, but not of 88%."""
    random, truth = np.random.default_rng(1), float(np.exp(-0.02))
    held = 0
    for _ in range(300):
        ratio = median_ratio([1.0] * rounds, np.exp(random.standard_t(3, rounds) * 0.05 - 0.02).tolist())
        held += ratio.low <= truth <= ratio.high
    assert 0.88 <= held / 300 <= 0.995


def test_more_rounds_narrow_the_interval():
    noise = np.random.default_rng(2).normal(1.0, 0.05, 400)
    few, many = (median_ratio([1.0] * rounds, noise[:rounds].tolist()) for rounds in (10, 400))
    assert many.high - many.low < (few.high - few.low) / 2


def test_a_series_keeps_its_values_and_says_where_half_of_them_lie():
    series = summarise("x", "decode", "tokens/s", [4.0, 1.0, 3.0, 2.0], [2.0] * 4, higher_is_better=True, batch=8)
    assert series.values == [4.0, 1.0, 3.0, 2.0]
    assert (series.median, series.quartiles) == (2.5, (1.75, 3.25))
    assert series.ratio is not None and series.ratio.median == 1.25


def test_stock_has_no_ratio_to_itself():
    assert summarise(STOCK, "decode", "tokens/s", [1.0, 2.0], [1.0, 2.0], higher_is_better=True).ratio is None


def test_a_result_is_read_back_from_its_file():
    written = result()
    assert msgspec.json.decode(written.to_json(), type=Result) == written


def test_the_file_says_what_was_measured_and_on_what():
    fields = msgspec.json.decode(result().to_json())
    assert set(fields) == {
        *("format", "kind", "created", "model", "dummy_weights", "description", "versions", "bundle", "rounds"),
        *("series", "engines", "traffic", "profiles"),
    }
    assert fields["format"] == 1
    assert set(fields["versions"]) == {"plumbob", "vllm", "torch"}
    assert {"device", "dtype", "compilation", "cudagraphs", "runner"} < set(fields["engines"]["tapped"])
    (scored,) = [series for series in fields["series"] if series["ratio"] is not None]
    assert msgspec.convert(scored["ratio"], Ratio) == Ratio(0.99, 0.97, 1.01)
