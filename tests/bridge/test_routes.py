"""Topic filters: matching, covering, validation."""

from hypothesis import given, strategies as st
import pytest

from custom_components.quic_bridge.bridge.routes import (
    Direction,
    Route,
    Router,
    covers,
    matches,
    subscriptions,
    valid_topic,
    validate_filter,
)


def route(topic_filter: str, direction: Direction = Direction.TO_REMOTE, max_qos: int = 2) -> Route:
    return Route(id=topic_filter, direction=direction, topic_filter=topic_filter, max_qos=max_qos)


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        # The examples of MQTT 5, 4.7.1
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/ranking", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
        ("sport/#", "sport", True),
        ("#", "anything/at/all", True),
        ("sport/tennis/+", "sport/tennis/player1", True),
        ("sport/tennis/+", "sport/tennis/player1/ranking", False),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        ("#", "$SYS/broker", False),
        ("+/monitor/Clients", "$SYS/monitor/Clients", False),
        ("$SYS/#", "$SYS/broker", True),
        ("a/b", "a/b", True),
        ("a/b", "a/B", False),
        ("a/b", "a", False),
        ("a", "a/b", False),
        ("a//c", "a//c", True),
        ("a/+/c", "a//c", True),
    ],
)
def test_matches(topic_filter: str, topic: str, expected: bool) -> None:
    assert matches(topic_filter, topic) is expected


levels = st.sampled_from(["a", "b", "", "+", "$x"])
filters = st.builds(
    lambda parts, tail: "/".join([*parts, "#"] if tail else parts),
    st.lists(levels, min_size=1, max_size=3),
    st.booleans(),
)
topics = st.lists(st.sampled_from(["a", "b", "", "$x", "c"]), min_size=1, max_size=4).map("/".join).filter(bool)


@given(filters, filters, st.lists(topics, max_size=30))
def test_covers_means_that_nothing_escapes(wider: str, narrower: str, names: list[str]) -> None:
    if covers(wider, narrower):
        assert all(matches(wider, name) for name in names if matches(narrower, name))


@pytest.mark.parametrize(
    ("wider", "narrower", "expected"),
    [
        ("#", "a/b", True),
        ("a/#", "a", True),
        ("a/+", "a/b", True),
        ("a/+", "a/#", False),
        ("a/b", "a/+", False),
        ("+/b", "a/b", True),
        ("#", "$SYS/#", False),
        ("a/b", "a/b", True),
        ("a/b/c", "a/b", False),
    ],
)
def test_covers(wider: str, narrower: str, expected: bool) -> None:
    assert covers(wider, narrower) is expected


@pytest.mark.parametrize(
    ("topic_filter", "problem"),
    [
        ("a/+/b/#", None),
        ("#", None),
        ("+", None),
        ("$SYS/#", None),
        ("", "filter_empty"),
        ("a\0b", "filter_invalid"),
        ("a" * 65_536, "filter_invalid"),
        ("a#", "filter_hash"),
        ("#/a", "filter_hash"),
        ("a+/b", "filter_plus"),
        ("$share/group/a", "filter_shared"),
    ],
)
def test_validate_filter(topic_filter: str, problem: str | None) -> None:
    assert validate_filter(topic_filter) == problem


def test_subscriptions_never_overlap() -> None:
    routes = (
        route("a/#", max_qos=1),
        route("a/b", max_qos=2),
        route("c", Direction.BOTH, max_qos=0),
        route("d", Direction.TO_LOCAL),
        route("c", max_qos=1),
    )
    assert subscriptions(routes, Direction.TO_REMOTE) == {"a/#": 2, "c": 1}
    assert subscriptions(routes, Direction.TO_LOCAL) == {"c": 0, "d": 2}


def test_the_first_route_decides_and_invalid_topics_have_none() -> None:
    first, second = route("a/+"), route("a/#")
    router = Router((first, second, route("x", Direction.TO_LOCAL)), Direction.TO_REMOTE)
    for _ in range(2):
        assert router.find(b"a/b") is first
        assert router.find(b"a/b/c") is second
        assert router.find(b"x") is None
        assert router.find(b"a/\xff") is None
        assert router.find(b"a/+") is None


def test_what_the_router_remembers_is_bounded() -> None:
    router = Router((route("#"),), Direction.TO_REMOTE)
    for number in range(Router.MAX_CACHED + 10):
        assert router.find(b"%d" % number) is not None
    assert len(router._cache) <= Router.MAX_CACHED


@pytest.mark.parametrize("topic", [b"", b"a/#", b"+", b"a\0", b"\xff"])
def test_invalid_topics(topic: bytes) -> None:
    assert not valid_topic(topic)
