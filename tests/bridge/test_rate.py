"""Rates and shares: what has grown over the last minute."""

from custom_components.quic_bridge.bridge.rate import Rate, Share


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


def test_the_share_of_one_counter_in_another() -> None:
    share = Share(2)
    share.sample(5, 100)
    assert share.percent is None
    share.sample(5, 100)
    assert share.percent is None, "nothing was sent, so nothing got lost"
    share.sample(6, 150)
    assert share.percent == 2.0
    share.sample(6, 200)
    assert share.percent == 1.0
    share.sample(6, 250)
    assert share.percent == 0.0
    # Another connection counts from the beginning.
    share.sample(1, 10)
    assert share.percent is None
    share.sample(2, 20)
    assert share.percent == 10.0
    share.sample(None, None)
    assert share.percent is None
