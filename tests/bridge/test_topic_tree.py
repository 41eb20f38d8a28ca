"""Many filters at once: the tree, and what is built on it, say what a look at each filter says."""

from hypothesis import given, strategies as st

from custom_components.quic_bridge.bridge.overlaps import groups, identifiers, overlapping
from custom_components.quic_bridge.bridge.routes import (
    Direction,
    Hidden,
    RetainedAtConnect,
    Route,
    Router,
    Subscription,
    hidden_routes,
    hidden_ways,
    subscriptions,
)
from custom_components.quic_bridge.bridge.topic_tree import TopicTree
from custom_components.quic_bridge.bridge.topics import covers, matches, overlap

_levels = st.sampled_from(["a", "b", "", "+", "$x"])
filters = st.builds(
    lambda parts, tail: "/".join([*parts, "#"] if tail else parts),
    st.lists(_levels, min_size=1, max_size=3),
    st.booleans(),
).filter(bool)
names = st.lists(st.sampled_from(["a", "b", "", "$x", "c"]), min_size=1, max_size=4).map("/".join).filter(bool)
routes = st.lists(
    st.builds(
        lambda direction, topic_filter, renamed, exclude, qos, retained: (
            direction,
            topic_filter,
            f"site/{_captures(topic_filter)}" if renamed else "",
            tuple(exclude),
            qos,
            retained,
        ),
        st.sampled_from(Direction),
        filters,
        st.booleans(),
        st.lists(filters, max_size=1),
        st.integers(0, 2),
        st.sampled_from(RetainedAtConnect),
    ),
    max_size=8,
).map(
    lambda items: [
        Route(
            id=str(number),
            direction=direction,
            topic_filter=topic_filter,
            target=target,
            exclude=exclude,
            max_qos=qos,
            retained=retained,
        )
        for number, (direction, topic_filter, target, exclude, qos, retained) in enumerate(items)
    ]
)


def _captures(topic_filter: str) -> str:
    """Name the levels of a filter, with its wildcards as captures."""
    number = 0
    levels = []
    for level in topic_filter.split("/"):
        number += level in {"+", "#"}
        levels.append(f"{{{number}}}" if level in {"+", "#"} else level)
    return "/".join(levels)


@given(st.lists(filters, max_size=12), filters | names)
def test_covering_is_what_covers_says_of_each(wide: list[str], topic: str) -> None:
    tree = TopicTree((name, number) for number, name in enumerate(wide))
    assert sorted(tree.covering(topic)) == [number for number, name in enumerate(wide) if covers(name, topic)]


@given(st.lists(filters, max_size=12), filters | names)
def test_overlapping_is_what_overlap_says_of_each(many: list[str], topic_filter: str) -> None:
    tree = TopicTree((name, number) for number, name in enumerate(many))
    expected = [number for number, name in enumerate(many) if overlap(name, topic_filter)]
    assert sorted(tree.overlapping(topic_filter)) == expected


@given(st.lists(filters, max_size=10), st.lists(filters, max_size=6), filters | names)
def test_a_tree_without_a_filter_is_one_that_never_had_it(many: list[str], less: list[str], topic: str) -> None:
    tree = TopicTree((name, number) for number, name in enumerate(many))
    for name in less:
        tree.discard(name)
    never = TopicTree((name, number) for number, name in enumerate(many) if name not in less)
    assert sorted(tree.overlapping(topic)) == sorted(never.overlapping(topic))
    assert sorted(tree.covering(topic)) == sorted(never.covering(topic))


def _others(name: str, many: list[str]) -> list[str]:
    return [other for other in many if other != name and overlap(name, other)]


@given(st.lists(filters, max_size=10, unique=True))
def test_groups_are_what_is_connected_by_overlaps(many: list[str]) -> None:
    found = overlapping(many)
    assert found == [name for name in many if _others(name, many)]
    parts = [set(group) for group in groups(found)]
    assert sorted(name for part in parts for name in part) == sorted(found)
    for part in parts:
        reached = {next(iter(part))}
        while new := {other for name in reached for other in _others(name, many)} - reached:
            reached |= new
        assert reached == part


@given(st.lists(filters, max_size=10, unique=True), st.lists(filters, max_size=4, unique=True))
def test_filters_that_overlap_have_different_identifiers(many: list[str], more: list[str]) -> None:
    """... and keep those they have, whatever is added."""
    chosen = identifiers(many, {})
    assert list(chosen) == many
    assert set(chosen.values()) == set(range(1, len(set(chosen.values())) + 1))
    everything = list(dict.fromkeys((*more, *many)))
    later = identifiers(everything, chosen)
    assert later | chosen == later
    for name in everything:
        assert later[name] not in {later[other] for other in _others(name, everything)}


def test_hundreds_of_filters_that_overlap_hundreds_have_two_identifiers() -> None:
    many = [*(f"+/device{number}/#" for number in range(300)), *(f"room{number}/#" for number in range(300))]
    assert overlapping(many) == many
    assert set(identifiers(many, {}).values()) == {1, 2}


@given(routes, names, st.sampled_from([Direction.TO_REMOTE, Direction.TO_LOCAL]))
def test_the_router_knows_how_many_subscriptions_match(found: list[Route], topic: str, direction: Direction) -> None:
    plan = Router(found, direction).find(topic.encode())
    if plan.route is not None:
        asked = [item.topic_filter for item in subscriptions(found, direction)]
        found_here = {way.topic_filter for route in found if (way := route.way(direction))}
        possible = sum(matches(topic_filter, topic) for topic_filter in found_here)
        assert plan.copies == max(sum(matches(topic_filter, topic) for topic_filter in asked), min(2, possible))


@given(routes, names, st.sampled_from([Direction.TO_REMOTE, Direction.TO_LOCAL]))
def test_the_router_takes_the_first_that_matches(found: list[Route], topic: str, direction: Direction) -> None:
    """The rule as the documentation has it, route by route."""
    expected: tuple[Route | None, str] = (None, topic)
    excluded = False
    for route in found:
        way = route.way(direction)
        new = way.apply(topic) if way is not None else None
        if new is None:
            continue
        local = new if route.direction is Direction.BOTH and direction is Direction.TO_LOCAL else topic
        if any(matches(exclude, local) for exclude in route.exclude):
            excluded = True
            continue
        expected = (route, new)
        break
    plan = Router(found, direction).find(topic.encode())
    assert (plan.route, (plan.topic or topic.encode()).decode()) == expected
    assert plan.excluded == (excluded and expected[0] is None)


@given(routes, st.sampled_from([Direction.TO_REMOTE, Direction.TO_LOCAL]))
def test_subscriptions_are_the_widest_filters_with_the_most_that_is_wanted(
    found: list[Route], direction: Direction
) -> None:
    ways = [(way.topic_filter, route) for route in found if (way := route.way(direction))]
    order = (RetainedAtConnect.ALWAYS, RetainedAtConnect.ONCE, RetainedAtConnect.NEVER)
    names = dict.fromkeys(name for name, _ in ways)
    widest = [name for name in names if not any(other != name and covers(other, name) for other in names)]
    served = {name: [route for other, route in ways if covers(name, other)] for name in widest}
    qos = {name: max(route.max_qos for route in served[name]) for name in widest}
    for _ in widest:  # the highest of all that it overlaps, and of all that these overlap
        qos = {name: max(qos[other] for other in widest if overlap(name, other)) for name in widest}
    expected = [
        Subscription(name, qos[name], min((route.retained for route in served[name]), key=order.index))
        for name in widest
    ]
    assert subscriptions(found, direction) == expected


@given(routes)
def test_a_hidden_route_has_those_before_it_that_take_all(found: list[Route]) -> None:
    expected = {}
    for position, route in enumerate(found):
        takers = [
            [
                other
                for other in found[:position]
                if not other.exclude and (wide := other.way(direction)) and covers(wide.topic_filter, way.topic_filter)
            ]
            for direction in (Direction.TO_REMOTE, Direction.TO_LOCAL)
            if (way := route.way(direction))
        ]
        in_all = [other for other in found[:position] if all(other in one_way for one_way in takers)]
        in_any = [other for other in found[:position] if any(other in one_way for one_way in takers)]
        if in_any:
            expected[route.id] = Hidden((in_all or in_any)[0], wholly=all(takers))
    assert hidden_ways(found) == expected
    assert hidden_routes(found) == {name: hidden.by for name, hidden in expected.items() if hidden.wholly}


def test_filters_with_thousands_of_levels() -> None:
    """A topic may have 65,535 levels, a filter as well."""
    deep = "/" * 20_000
    tree = TopicTree([(deep, 1), ("#", 2), (f"{deep}#", 3), ("+/+", 4)])
    assert sorted(tree.covering(deep)) == [1, 2, 3]
    assert sorted(tree.overlapping(deep)) == [1, 2, 3]
    assert sorted(tree.overlapping("#")) == [1, 2, 3, 4]
