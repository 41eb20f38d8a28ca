"""Routes: which there are, which decides, what they do to a topic, what is wrong with them."""

from dataclasses import replace
import itertools
import time

import pytest

from custom_components.quic_bridge.bridge.routes import (
    Direction,
    RetainedAtConnect,
    Route,
    Router,
    Subscription,
    hidden_routes,
    loop_of,
    subscriptions,
)


def route(
    topic_filter: str,
    direction: Direction = Direction.TO_REMOTE,
    *,
    target: str = "",
    exclude: tuple[str, ...] = (),
    max_qos: int = 2,
    retained: RetainedAtConnect = RetainedAtConnect.ONCE,
) -> Route:
    return Route(
        id=f"{topic_filter} {direction}",
        direction=direction,
        topic_filter=topic_filter,
        target=target,
        exclude=exclude,
        max_qos=max_qos,
        retained=retained,
    )


def test_what_another_filter_covers_is_not_subscribed() -> None:
    routes = (
        route("a/#", max_qos=1, retained=RetainedAtConnect.NEVER),
        route("a/b", max_qos=2, retained=RetainedAtConnect.ALWAYS),
        route("c", Direction.BOTH, max_qos=0),
        route("d", Direction.TO_LOCAL, retained=RetainedAtConnect.NEVER),
        route("c", max_qos=1),
    )
    assert subscriptions(routes, Direction.TO_REMOTE) == [
        Subscription("a/#", 2, RetainedAtConnect.ALWAYS),
        Subscription("c", 1),
    ]
    assert subscriptions(routes, Direction.TO_LOCAL) == [
        Subscription("c", 0),
        Subscription("d", 2, RetainedAtConnect.NEVER),
    ]


def test_a_route_both_ways_subscribes_its_new_names_on_the_way_back() -> None:
    both = route("z/#", Direction.BOTH, target="site/7/z/{1}")
    assert [item.topic_filter for item in subscriptions([both], Direction.TO_REMOTE)] == ["z/#"]
    assert [item.topic_filter for item in subscriptions([both], Direction.TO_LOCAL)] == ["site/7/z/#"]
    there, back = Router([both], Direction.TO_REMOTE), Router([both], Direction.TO_LOCAL)
    assert there.find(b"z/lamp/set").topic == b"site/7/z/lamp/set"
    assert back.find(b"site/7/z/lamp").topic == b"z/lamp"
    assert back.find(b"z/lamp").route is None


def test_the_first_route_decides_and_invalid_topics_have_none() -> None:
    first, second = route("a/+"), route("a/#")
    router = Router((first, second, route("x", Direction.TO_LOCAL)), Direction.TO_REMOTE)
    for _ in range(2):
        assert router.find(b"a/b").route is first
        assert router.find(b"a/b/c").route is second
        assert router.find(b"x").route is None
        assert router.find(b"a/\xff").route is None
        assert router.find(b"a/+").route is None
        assert router.find(b"a/b").topic is None


def test_system_topics_never_cross() -> None:
    assert Router([route("$SYS/#"), route("#")], Direction.TO_REMOTE).find(b"$SYS/broker/uptime").route is None


def test_exclusions_leave_a_topic_to_the_next_route() -> None:
    first, second = route("a/#", exclude=("a/secret/#", "a/+/log")), route("a/secret/door")
    router = Router((first, second), Direction.TO_REMOTE)
    assert router.find(b"a/x").route is first
    assert router.find(b"a/secret/door").route is second
    for topic in (b"a/secret/window", b"a/x/log"):
        plan = router.find(topic)
        assert plan.route is None
        assert plan.excluded


def test_exclusions_of_a_route_both_ways_are_local_names() -> None:
    both = route("z/#", Direction.BOTH, target="site/z/{1}", exclude=("z/secret",))
    assert Router([both], Direction.TO_REMOTE).find(b"z/secret").excluded
    assert Router([both], Direction.TO_LOCAL).find(b"site/z/secret").excluded


@pytest.mark.parametrize(
    ("topic_filter", "target"),
    [("z/#", "site/z/{1}"), ("z/+/+", "{2}/at/{1}"), ("z/#", ""), ("z/#", "{1}"), ("z/lamp/set", "lamp")],
)
@pytest.mark.parametrize("exclude", ["z/lamp", "z/+/set", "+/lamp/#", "z/lamp/#", "z/+", "other/#"])
def test_one_way_of_a_route_both_ways(topic_filter: str, target: str, exclude: str) -> None:
    both = route(topic_filter, Direction.BOTH, target=target, exclude=(exclude,))
    levels = ("z", "site", "lamp", "set", "at", "door")
    topics = ["/".join(parts) for length in (1, 2, 3) for parts in itertools.product(levels, repeat=length)]
    for direction, opposite in itertools.permutations((Direction.TO_REMOTE, Direction.TO_LOCAL)):
        one_way = both.one_way(direction)
        assert one_way is not None
        assert (one_way.problem(), one_way.id) == (None, both.id)
        assert (one_way.one_way(direction), one_way.one_way(opposite)) == (one_way, None)
        before, after = Router([both], direction), Router([one_way], direction)
        for topic in map(str.encode, topics):
            found, same = before.find(topic), after.find(topic)
            assert (found.topic, found.excluded, found.route is None) == (same.topic, same.excluded, same.route is None)


def test_a_stream_of_its_own_is_for_the_way_to_the_remote() -> None:
    both = replace(route("z/#", Direction.BOTH), own_stream=True)
    there, back = both.one_way(Direction.TO_REMOTE), both.one_way(Direction.TO_LOCAL)
    assert there is not None
    assert there.own_stream
    assert back is not None
    assert not back.own_stream


def test_response_topics_get_the_name_under_which_the_answer_comes_back() -> None:
    routes = [
        route("requests/#", target="site/7/requests/{1}"),
        route("site/7/answers/#", Direction.TO_LOCAL, target="answers/{1}"),
    ]
    router = Router(routes, Direction.TO_REMOTE)
    assert router.response_topic(b"answers/42") == b"site/7/answers/42"
    assert router.response_topic(b"elsewhere") == b"elsewhere"
    assert router.response_topic(b"\xff") == b"\xff"


def test_what_the_router_remembers_is_bounded() -> None:
    router = Router((route("#"),), Direction.TO_REMOTE)
    for number in range(2 * Router.MAX_CACHED):
        assert router.find(b"%d" % number).route is not None
    assert len(router._cache) == Router.MAX_CACHED
    long = b"x" * Router.MAX_CACHED_LENGTH
    assert router.find(long) is router.find(long)
    assert router.find(long + b"x") is not router.find(long + b"x")


def test_topics_in_turn_are_remembered_even_if_there_are_too_many() -> None:
    """To clear what is full, or to forget the oldest, would be to remember none of them."""
    router = Router((route("#"),), Direction.TO_REMOTE)
    topics = [b"%d" % number for number in range(Router.MAX_CACHED + 100)]
    first = [router.find(topic) for topic in topics]
    again = [router.find(topic) for topic in topics]
    assert sum(one is other for one, other in zip(first, again, strict=True)) > 0.9 * len(topics)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (route("a/#", target="b/{1}"), None),
        (route("a/+", Direction.BOTH, target="x-{1}"), "target_one_way"),
        (route("a/+", target="x-{1}"), None),
        (route(""), "filter_empty"),
        (route("$SYS/#"), "filter_sys"),
        (route("a", exclude=("a#",)), "exclude_invalid"),
        (route("a/+", target="{2}"), "target_capture"),
        (route("a/+", target="b/+"), "target_wildcard"),
    ],
)
def test_problems(wrong: Route, problem: str | None) -> None:
    assert wrong.problem() == problem


def test_a_route_that_another_hides() -> None:
    wide, narrow, back = route("a/#"), route("a/b"), route("a/b", Direction.TO_LOCAL)
    assert hidden_routes([wide, narrow, route("a/+")]) == {narrow.id: wide, route("a/+").id: wide}
    assert hidden_routes([narrow, wide]) == {}
    assert hidden_routes([wide, back]) == {}
    assert hidden_routes([route("a/#", exclude=("a/b",)), narrow]) == {}
    both = route("a/b", Direction.BOTH)
    assert hidden_routes([wide, both]) == {}
    assert hidden_routes([both, narrow, back]) == {narrow.id: both, back.id: both}
    # One takes what goes there, another what comes back.
    assert hidden_routes([wide, route("#", Direction.TO_LOCAL), both]) == {both.id: wide}
    # What is not hidden by the first such route may be by the next.
    assert hidden_routes([wide, route("#", Direction.TO_LOCAL), back]) == {back.id: route("#", Direction.TO_LOCAL)}


def test_thousands_of_plain_topics_are_compared_quickly() -> None:
    routes = [route(f"home/{number}/state") for number in range(5000)]
    began = time.process_time()
    assert hidden_routes([*routes, route("home/#"), route("home/7/+")]) == {route("home/7/+").id: route("home/#")}
    assert time.process_time() - began < 2


def test_a_route_whose_messages_come_back() -> None:
    there = route("a/#", target="b/{1}")
    back = route("b/#", Direction.TO_LOCAL, target="c/{1}")
    assert loop_of([there, back], there) is back
    assert loop_of([there, back], back) is None
    round_trip = route("b/#", Direction.TO_LOCAL, target="a/{1}")
    assert loop_of([there, round_trip], round_trip) is there
    assert loop_of([there, route("x", Direction.TO_LOCAL)], there) is None
