"""Rates: what has grown over the last minute."""

from custom_components.quic_bridge.bridge.rate import Rate


def test_growth_over_the_window() -> None:
    rate = Rate(3)
    rate.sample(100.0, 50)
    assert rate.per_minute == 0.0
    rate.sample(105.0, 55)
    assert rate.per_minute == 60.0
    rate.sample(110.0, 55)
    assert rate.per_minute == 30.0
    rate.sample(115.0, 55)
    # The burst leaves the window in the end.
    rate.sample(120.0, 55)
    assert rate.per_minute == 0.0


def test_a_clock_that_stands_still_and_a_new_beginning() -> None:
    rate = Rate(3)
    rate.sample(1.0, 1)
    rate.sample(1.0, 9)
    assert rate.per_minute == 0.0
    rate.sample(2.0, 9)
    assert rate.per_minute > 0
    rate.reset()
    assert rate.per_minute == 0.0
    rate.sample(3.0, 0)
    assert rate.per_minute == 0.0
