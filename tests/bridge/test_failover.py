"""Which endpoint is dialled next: tables of what happened, and where that leads."""

from dataclasses import dataclass, replace

import pytest

from custom_components.quic_bridge.bridge.config import BrokerConfig, Endpoint, FailoverConfig, TlsConfig, TransportKind
from custom_components.quic_bridge.bridge.errors import ErrorCode
from custom_components.quic_bridge.bridge.failover import Failover

BROKER = BrokerConfig(
    host="main",
    port=14567,
    client_id="bridge",
    transport=TransportKind.QUIC,
    username="user",
    password="secret",
    window=7,
    session_expiry=99,
)
FURTHER = (Endpoint(host="second", port=1), Endpoint(host="third", port=2))
TCP = Endpoint(host="main", port=8883)
QUIC_OR_TCP = FailoverConfig(fallback=TCP)
QUIC_ALONE = FailoverConfig()
THREE = FailoverConfig(further=FURTHER)
THREE_OR_TCP = FailoverConfig(further=FURTHER, fallback=TCP)
T = 3
"""Index of the fallback behind three servers."""


@dataclass(frozen=True)
class Fail:
    """An attempt that failed."""

    code: ErrorCode = ErrorCode.NO_ANSWER
    took: float = 10.0
    asked: bool = False


@dataclass(frozen=True)
class Hold:
    """A session, and how it ended."""

    seconds: float
    code: ErrorCode = ErrorCode.PING_TIMEOUT


@dataclass(frozen=True)
class Probe:
    """What probes find, one after the other, as often as told."""

    answered: int | None
    times: int = 1


@dataclass(frozen=True)
class Restart:
    """A person asks for a reconnect."""


type Step = Fail | Hold | Probe | Restart
REFUSED = Fail(ErrorCode.REFUSED, 0.5)
DOWN = (Fail(), Fail())
"""QUIC long enough without an answer."""


class Run:
    """Drives the policy, with a clock that stands still in between. Unless `fresh`, there was a session before."""

    def __init__(self, config: FailoverConfig, *, fresh: bool = False) -> None:
        self.failover = Failover(config)
        self.now = 1000.0
        if not fresh:
            self.failover.connected(self.now)
        self.moved = False

    def step(self, step: Step) -> int:
        """Let one thing happen; returns the endpoint that is dialled next."""
        failover = self.failover
        match step:
            case Fail(code, took, asked):
                began = self.now
                self.now += took
                failover.ended(code, self.now, began=began, asked=asked)
            case Hold(seconds, code):
                failover.connected(self.now)
                began = self.now
                self.now += seconds
                failover.ended(code, self.now, began=began, connected_for=seconds)
            case Probe(answered, times):
                for _ in range(times):
                    self.now += failover.probe_delay(self.now)
                    self.moved = failover.probed(answered, self.now)
            case Restart():
                failover.restart()
        return failover.index

    def steps(self, *steps: Step) -> list[int]:
        """Let several things happen."""
        return [self.step(step) for step in steps]


def on_fallback(**changes: float) -> Run:
    """UDP was found to be blocked, and a session runs over the fallback."""
    run = Run(replace(QUIC_OR_TCP, **changes))  # type: ignore[arg-type] # all of them are times
    assert run.steps(*DOWN) == [0, 1]
    run.failover.connected(run.now)
    return run


@pytest.mark.parametrize(
    ("config", "steps", "expected"),
    [
        pytest.param(QUIC_ALONE, [Fail()] * 4, [0, 0, 0, 0], id="no choice"),
        pytest.param(QUIC_OR_TCP, [*DOWN], [0, 1], id="20 s and two attempts"),
        pytest.param(QUIC_OR_TCP, [Fail(took=30), Fail(took=1)], [0, 1], id="one attempt is not enough"),
        pytest.param(QUIC_OR_TCP, [REFUSED] * 40, [0] * 39 + [1], id="many attempts, but not long enough"),
        pytest.param(QUIC_OR_TCP, [*DOWN, REFUSED, Fail(), Fail()], [0, 1, 0, 0, 1], id="fallback no good either"),
        pytest.param(
            QUIC_OR_TCP,
            [*DOWN, Fail(ErrorCode.CERTIFICATE_UNTRUSTED, 1)],
            [0, 1, 0],
            id="fallback with another certificate",
        ),
        pytest.param(
            QUIC_OR_TCP, [*DOWN, Fail(ErrorCode.BAD_CREDENTIALS, 1)], [0, 1, 0], id="fallback refuses credentials"
        ),
        pytest.param(
            QUIC_OR_TCP, [*DOWN, Hold(5), Fail(), Fail()], [0, 1, 1, 1, 0], id="fallback that worked is tried again"
        ),
        pytest.param(
            QUIC_OR_TCP,
            [*DOWN, Hold(90), Fail(ErrorCode.CERTIFICATE_EXPIRED, 21)],
            [0, 1, 1, 0],
            id="fallback that worked and is out of date",
        ),
        pytest.param(
            QUIC_OR_TCP,
            [*DOWN, Hold(90, ErrorCode.KICKED), Fail(ErrorCode.BAD_CREDENTIALS), Fail(ErrorCode.BAD_CREDENTIALS, 60)],
            [0, 1, 1, 1, 1],
            id="fallback that worked speaks for the broker",
        ),
        pytest.param(QUIC_OR_TCP, [Hold(5), Hold(5), Hold(5), Hold(5)], [0, 0, 0, 0], id="short sessions: not yet"),
        pytest.param(QUIC_OR_TCP, [Hold(5), Hold(5), Hold(5), Hold(5), Hold(5)], [0, 0, 0, 0, 1], id="QUIC that flaps"),
        pytest.param(QUIC_OR_TCP, [Hold(61), Hold(61), Hold(61)], [0, 0, 0], id="long sessions are good sessions"),
        pytest.param(
            QUIC_OR_TCP, [Fail(), Hold(61), Fail(took=19), Fail(took=1)], [0, 0, 0, 1], id="from the loss on it counts"
        ),
        pytest.param(
            QUIC_OR_TCP,
            [Fail(), Fail(ErrorCode.NOT_AUTHORIZED), Fail()],
            [0, 0, 0],
            id="a broker that answers can be reached",
        ),
        pytest.param(THREE, [Fail()] * 7, [1, 2, 0, 1, 2, 0, 1], id="servers in turn"),
        pytest.param(THREE, [Fail(), Hold(90), Fail()], [1, 1, 2], id="the server we were at is tried first"),
        pytest.param(
            THREE,
            [Fail(ErrorCode.OVERLOADED, 1), Fail(ErrorCode.CERTIFICATE_EXPIRED, 1)],
            [1, 2],
            id="what another server may cure",
        ),
        pytest.param(THREE, [Hold(90, ErrorCode.SHUTTING_DOWN)], [0], id="a restart is waited for"),
        pytest.param(THREE, [Fail(ErrorCode.BAD_CREDENTIALS, 1)], [0], id="credentials are the same everywhere"),
        pytest.param(THREE_OR_TCP, [Fail()] * 7, [1, 2, T, 0, 1, 2, T], id="each server once before the fallback"),
        pytest.param(QUIC_OR_TCP, [*DOWN, Hold(5), Restart(), Fail()], [0, 1, 1, 0, 1], id="asked to begin anew"),
        pytest.param(QUIC_OR_TCP, [*DOWN, Restart(), *DOWN], [0, 1, 0, 0, 1], id="... with nothing that worked"),
        pytest.param(QUIC_OR_TCP, [Fail(), Restart(), Fail()], [0, 0, 1], id="... where there is nothing to change"),
    ],
)
def test_what_is_dialled_next(config: FailoverConfig, steps: list[Step], expected: list[int]) -> None:
    assert Run(config).steps(*steps) == expected


@pytest.mark.parametrize(
    ("config", "steps", "expected"),
    [
        pytest.param(QUIC_OR_TCP, [REFUSED], [1], id="once is enough"),
        pytest.param(QUIC_OR_TCP, [REFUSED, REFUSED, *DOWN], [1, 0, 0, 1], id="... the first time"),
        pytest.param(QUIC_OR_TCP, [Fail(ErrorCode.BAD_CREDENTIALS), REFUSED], [0, 1], id="a broker that answers"),
        pytest.param(THREE_OR_TCP, [REFUSED, REFUSED, REFUSED, REFUSED], [1, 2, T, 0], id="each server once"),
        pytest.param(QUIC_OR_TCP, [Hold(5), *DOWN], [0, 0, 1], id="a session over QUIC speaks for it"),
    ],
)
def test_at_the_start(config: FailoverConfig, steps: list[Step], expected: list[int]) -> None:
    assert Run(config, fresh=True).steps(*steps) == expected


@pytest.mark.parametrize("code", list(ErrorCode))
def test_what_another_transport_may_cure(code: ErrorCode) -> None:
    """Not what the broker says of us, not its certificate, not a fault of our own."""
    may = {
        ErrorCode.NAME_NOT_FOUND,
        ErrorCode.NO_ANSWER,
        ErrorCode.REFUSED,
        ErrorCode.UNREACHABLE,
        ErrorCode.NOT_MQTT_QUIC,
        ErrorCode.TLS_FAILED,
        ErrorCode.NO_CONNACK,
        ErrorCode.CLOSED_BY_BROKER,
        ErrorCode.PING_TIMEOUT,
        ErrorCode.IDLE_TIMEOUT,
        ErrorCode.KEEPALIVE_TIMEOUT,
    }
    for asked in (False, True):
        # A breach of the protocol before CONNECT is one of QUIC's.
        falls_back = code in may or (code is ErrorCode.PROTOCOL_ERROR and not asked)
        assert Run(QUIC_OR_TCP).steps(*[Fail(code, asked=asked)] * 2) == [0, int(falls_back)]


def test_the_session_is_the_same_everywhere() -> None:
    failover = Failover(THREE_OR_TCP)
    assert failover.endpoint(0, BROKER) is BROKER
    assert failover.endpoint(1, BROKER) == replace(BROKER, host="second", port=1)
    assert failover.endpoint(2, BROKER) == replace(BROKER, host="third", port=2)
    tls = TlsConfig(server_name="broker.example.org")
    for given, used in ((None, TlsConfig()), (tls, tls)):
        broker = replace(BROKER, tls=given)
        assert failover.endpoint(T, broker) == replace(
            broker, host="main", port=8883, transport=TransportKind.TCP, tls=used
        )


# --- the way back -----------------------------------------------------------------------------------------------------


def test_moves_when_good_for_the_hold_down() -> None:
    run = on_fallback()
    began = run.now
    run.step(Probe(0))
    assert run.now - began == 30
    assert not run.moved
    first = run.now
    while not run.moved:
        assert run.failover.index == 1
        run.step(Probe(0))
    assert run.now - first == 60
    assert run.failover.index == 0


def test_one_bad_probe_begins_the_hold_down_anew() -> None:
    run = on_fallback()
    run.steps(Probe(0, 4), Probe(None), Probe(0, 4))
    assert not run.moved
    assert run.failover.probes_good == 4
    run.step(Probe(0))
    assert run.moved


def test_several_probes_even_if_each_takes_long() -> None:
    run = on_fallback(hold_down=0.0)
    for number in range(3):
        assert not run.moved, number
        run.step(Probe(0))
    assert run.moved


def test_probes_become_rare_where_they_fail() -> None:
    run = on_fallback()
    delays = []
    for _ in range(200):
        delays.append(run.failover.probe_delay(run.now))
        run.step(Probe(None))
    assert delays[0] == 30
    assert delays == sorted(delays)
    assert delays[-1] == 300


def test_flapping_doubles_the_hold_down_up_to_a_cap() -> None:
    """QUIC handshakes well, and each session is lost after 5 s: J4."""
    run = on_fallback()
    held = []
    for _ in range(9):
        began = run.now
        while not run.moved:
            run.step(Probe(0))
        held.append(run.failover.hold_down)
        assert run.now - began >= held[-1]
        run.moved = False
        # Back at once, without the patience of the first time.
        assert run.step(Hold(5)) == 1
        run.failover.connected(run.now)
    assert held == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    # A good time at QUIC is the end of that.
    while not run.moved:
        run.step(Probe(0))
    assert run.steps(Hold(6 * 3600), *DOWN) == [0, 0, 1]
    assert run.failover.hold_down == 60


def test_handshakes_and_nothing_else() -> None:
    """Probes are answered, the session is refused there: back at once, and a longer wait."""
    for code in (ErrorCode.NO_CONNACK, ErrorCode.BAD_CREDENTIALS):
        run = on_fallback()
        run.step(Probe(0, 5))
        assert run.moved
        assert run.step(Fail(code, 1, asked=True)) == 1
        assert run.failover.hold_down == 120


def test_lost_after_a_while_is_flapping_too() -> None:
    """Good for less than five hold-downs: patience as ever, but the way back takes longer."""
    run = on_fallback()
    run.step(Probe(0, 5))
    assert run.steps(Hold(200), *DOWN) == [0, 0, 1]
    assert run.failover.hold_down == 120


def test_back_without_a_probe() -> None:
    """The fallback fails, QUIC works again; if that is soon lost, it counts as flapping."""
    run = on_fallback()
    run.failover.ended(ErrorCode.CLOSED_BY_BROKER, run.now + 90, began=run.now, connected_for=90)
    run.now += 90
    assert run.steps(*DOWN) == [1, 0]
    assert run.steps(Hold(70), *DOWN) == [0, 0, 1]
    assert run.failover.hold_down == 120


def test_the_best_of_several_that_answer() -> None:
    run = Run(THREE_OR_TCP)
    run.steps(Fail(), Fail(), Fail())
    run.failover.connected(run.now)
    # The first is down for good, the second answers.
    run.step(Probe(1, 5))
    assert (run.moved, run.failover.index) == (True, 1)
    run.failover.connected(run.now)
    run.moved = False
    run.step(Probe(0, 5))
    assert (run.moved, run.failover.index) == (True, 0)


def test_another_that_answers_begins_anew() -> None:
    run = Run(THREE_OR_TCP)
    run.steps(Fail(), Fail(), Fail())
    run.failover.connected(run.now)
    run.steps(Probe(1, 4), Probe(0, 4))
    assert not run.moved
    run.step(Probe(0))
    assert (run.moved, run.failover.index) == (True, 0)
