"""Waiting times between attempts."""

import random

import pytest

from custom_components.quic_bridge.bridge.backoff import Backoff
from custom_components.quic_bridge.bridge.config import BackoffConfig
from custom_components.quic_bridge.bridge.errors import ErrorCode

CONFIG = BackoffConfig(base=1.0, cap=30.0, stable=20.0, refused_base=30.0, refused_cap=600.0)


@pytest.fixture
def backoff() -> Backoff:
    return Backoff(CONFIG, random.Random(1))


def test_waits_grow_to_the_cap_and_stay_there(backoff: Backoff) -> None:
    waits = [backoff.next(ErrorCode.NO_ANSWER, 0) for _ in range(200)]
    assert 0.5 <= waits[0] <= 1.0
    assert all(1.0 <= wait <= 30.0 for wait in waits[1:])
    assert max(waits) == 30.0
    assert sum(waits[100:]) / 100 > 10


def test_a_broker_is_found_soon_after_it_is_back(backoff: Backoff) -> None:
    """The wait that the return falls into is short beside the outage."""
    elapsed = 0.0
    while elapsed < 300:
        wait = backoff.next(ErrorCode.REFUSED, 0)
        assert wait <= max(2.0, elapsed / 15)
        elapsed += wait


def test_waits_are_spread(backoff: Backoff) -> None:
    other = Backoff(CONFIG, random.Random(2))
    assert backoff.next(ErrorCode.NO_ANSWER, 0) != other.next(ErrorCode.NO_ANSWER, 0)


def test_a_short_session_does_not_reset_a_long_one_does(backoff: Backoff) -> None:
    for _ in range(50):
        backoff.next(ErrorCode.CLOSED_BY_BROKER, 0)
    assert backoff.next(ErrorCode.CLOSED_BY_BROKER, 5) >= 1.0
    assert backoff.next(ErrorCode.CLOSED_BY_BROKER, 25) <= 1.0


@pytest.mark.parametrize(
    "error", [ErrorCode.BAD_CREDENTIALS, ErrorCode.SESSION_TAKEN_OVER, ErrorCode.CERTIFICATE_EXPIRED]
)
def test_what_time_does_not_cure_is_tried_slowly(backoff: Backoff, error: ErrorCode) -> None:
    backoff.next(ErrorCode.NO_ANSWER, 0)
    waits = [backoff.next(error, 0) for _ in range(100)]
    assert waits[0] >= 15.0
    assert all(30.0 <= wait <= 600.0 for wait in waits[1:])
    assert backoff.next(ErrorCode.NO_ANSWER, 0) <= 1.0


def test_reset(backoff: Backoff) -> None:
    for _ in range(50):
        backoff.next(ErrorCode.NO_ANSWER, 0)
    backoff.reset()
    assert backoff.next(ErrorCode.NO_ANSWER, 0) <= 1.0
