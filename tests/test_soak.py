"""A short run of the soak test (`scripts/soak` runs it for as long as one wants), and whether it sees what is wrong."""

from pathlib import Path

import pytest

from .soak.broker_log import BrokerLog
from .soak.driver import Soak
from .soak.ledger import Mirror, Problem, Stream, payload

pytestmark = pytest.mark.usefixtures("socket_enabled")


def arrived(stream: Stream, *numbers: int) -> list[tuple[str, int, int]]:
    for number in numbers:
        stream.arrive(payload(number, 20))
    return [(problem.what, problem.first, problem.last) for problem in stream.problems()]


@pytest.mark.parametrize("seed", [38, 59])
async def test_nothing_is_lost(tmp_path: Path, seed: int) -> None:
    lines: list[str] = []
    verdict = await Soak(tmp_path, seed, lines.append, rate=250.0).run(0.0, 12.0)
    print("\n".join(lines))
    assert verdict.good, verdict.problems
    assert verdict.rounds == 1
    assert verdict.faults
    assert verdict.arrived > 100


def test_the_ledger_sees_losses_copies_and_wrong_order() -> None:
    stream = Stream("t", 2)
    stream.settle(stream.publish(10, 1.0), acknowledged=True)
    assert not stream.complete
    assert arrived(stream, 0, 1, 5, 2, 6, 6, 9) == [
        ("lost", 3, 4),
        ("lost", 7, 8),
        ("out of order", 2, 2),
        ("delivered twice", 6, 6),
    ]
    assert stream.problems() == []
    stream.settle(stream.publish(2, 2.5), acknowledged=True)
    assert stream.problems() == [Problem("t", "lost", 10, 11, 2.5, 2.5)]


def test_the_ledger_forgives_what_mqtt_allows() -> None:
    stream = Stream("t", 1)
    stream.settle(stream.publish(5, 1.0), acknowledged=True)
    assert arrived(stream, 0, 1, 2, 1, 2, 3, 4) == []
    assert (stream.complete, stream.repeats) == (True, 2)
    # The publisher's own broker went before it acknowledged these.
    stream.settle(stream.publish(5, 2.0), acknowledged=False)
    assert arrived(stream, 5, 8) == []
    stream = Stream("t", 0)
    stream.settle(stream.publish(5, 1.0), acknowledged=True)
    assert stream.complete
    assert arrived(stream, 0, 4) == []
    assert stream.unasked == 3
    assert arrived(stream, 3, 4) == [("out of order", 3, 3), ("delivered twice", 4, 4)]


def test_the_ledger_knows_when_a_route_was_away() -> None:
    stream = Stream("t", 1)
    stream.settle(stream.publish(3, 1.0), acknowledged=True)
    assert arrived(stream, 0) == [("lost", 1, 2)]
    stream.settle(stream.publish(2, 2.0), acknowledged=True)
    stream.route_goes()
    stream.settle(stream.publish(2, 3.0), acknowledged=True)
    stream.route_is_back()
    # The bridge follows the route again, the broker may be away: nobody knows until something arrives.
    stream.settle(stream.publish(3, 4.0), acknowledged=True)
    assert (stream.certain, stream.complete) == (False, True)
    assert arrived(stream, 8) == [("lost", 9, 9)]
    assert stream.certain
    assert stream.uncertain == 5
    # Dropped while there was no route, and repeated by its broker (QoS 1); this one never had that reason to be late.
    assert arrived(stream, 5, 2) == [("out of order", 2, 2)]
    stream.settle(stream.publish(1, 5.0), acknowledged=True)
    assert not stream.complete


def test_the_ledger_counts_what_may_fall() -> None:
    stream = Stream("t", 2, may_fall=True)
    stream.settle(stream.publish(5, 1.0), acknowledged=True)
    assert stream.complete
    assert arrived(stream, 3, 1) == [("out of order", 1, 1)]
    assert stream.fallen == 3


def test_what_went_round_is_seen() -> None:
    mirror = Mirror("t")
    for number in (0, 1, 2, 1):
        mirror.arrive(payload(number, 20))
    assert [(problem.what, problem.first) for problem in mirror.problems()] == [("delivered twice", 1)]
    assert mirror.problems() == []


def test_the_ledger_sees_damage() -> None:
    stream = Stream("t", 1)
    stream.publish(1, 1.0)
    stream.arrive(payload(0, 100)[:-1] + b"x")
    stream.arrive(payload(7, 100))
    assert len(stream.problems()) == 2


def test_the_brokers_own_faults_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "broker.log"
    path.write_text(
        "1: Sending PUBLISH to bridge (d0, q2, r0, m7, 't/a', ... (3 bytes))\n"
        "1: Received PUBREC from bridge (Mid: 7)\n"
        "1: Sending PUBREL to bridge (m7)\n"
        "2: Sending PUBLISH to other (d0, q2, r0, m7, 't/a', ... (3 bytes))\n"
        "2: Sending PUBLISH to bridge (d0, q1, r0, m9, 't/b', ... (3 bytes))\n"
        "2: Sending PUBLISH to bridge (d0, q1, r0, m8, 't/b', ... (3 bytes))\n"
        "3: Sending CONNACK to bridge (1, 0)\n"
        "3: Sending PUBLISH to bridge (d1, q1, r0, m8, 't/b', ... (3 bytes))\n"
        "3: Sending PUBL"
    )
    log = BrokerLog(path)
    faults = log.faults()
    assert (faults.repeated, faults.overtaken, faults.again) == ({}, {"t/b": 1}, {"t/b": 1})
    with path.open("a") as file:
        file.write(
            "ISH to bridge (d1, q2, r0, m7, 't/a', ... (3 bytes))\n4: Received PUBCOMP from bridge (Mid: 7, RC:0)\n"
        )
    faults = log.faults()
    assert (faults.repeated, faults.overtaken) == ({"t/a": 1}, {})
    log.forget()
    with path.open("a") as file:
        file.write("5: Sending PUBLISH to bridge (d0, q2, r0, m7, 't/a', ... (3 bytes))\n")
    assert not log.faults()


def test_the_log_tells_of_a_new_message_among_those_that_are_repeated(tmp_path: Path) -> None:
    """As mosquitto 2.0.11 sent them: 8 and 9 come late."""
    path = tmp_path / "broker.log"
    lines = [f"1: Sending PUBLISH to bridge (d0, q2, r0, m{mid}, 't/a', ... (3 bytes))" for mid in (7, 8, 9)]
    lines.append("2: Sending CONNACK to bridge (1, 0)")
    lines += [
        f"2: Sending PUBLISH to bridge (d{dup}, q2, r0, m{mid}, 't/a', ... (3 bytes))"
        for dup, mid in ((1, 7), (0, 10), (1, 8), (1, 9))
    ]
    path.write_text("\n".join(lines) + "\n")
    assert BrokerLog(path).faults().overtaken == {"t/a": 2}


def test_the_log_tells_what_a_broker_holds_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "remote.log"
    path.write_text(
        "1: Sending PUBREC to bridge (m7, rc0)\n"
        "1: Sending PUBREC to bridge (m8, rc0)\n"
        "1: Sending PUBREC to bridge (m9, rc151)\n"
        "1: Sending PUBREC to test-1 (m10, rc0)\n"
        "1: Received PUBREL from bridge (Mid: 7)\n"
    )
    log = BrokerLog(path)
    log.faults()
    assert (log.name, log.held) == ("remote", {8})
    log.forget()
    assert log.held == {8}
    path.write_text("2: Sending CONNACK to bridge (1, 0)\n")
    log.faults()
    assert log.held == {8}
    log.forget()
    path.write_text("2: Sending CONNACK to bridge (0, 0)\n")
    log.faults()
    assert not log.held
