"""Topic filters and rewriting."""

import re

from hypothesis import example, given, strategies as st
import pytest

from custom_components.quic_bridge.bridge.topics import (
    Rewrite,
    captures,
    common,
    covers,
    matches,
    overlap,
    valid_topic,
    validate_filter,
)

levels = st.sampled_from(["a", "b", "", "+", "$x"])
filters = st.builds(
    lambda parts, tail: "/".join([*parts, "#"] if tail else parts),
    st.lists(levels, min_size=1, max_size=3),
    st.booleans(),
)
names = st.lists(st.sampled_from(["a", "b", "", "$x", "c"]), min_size=1, max_size=4).map("/".join).filter(bool)


def slow_matches(topic_filter: str, topic: str) -> bool:
    """The rules of MQTT 5, 4.7, one after the other."""

    def rest(pattern: list[str], parts: list[str]) -> bool:
        if pattern == ["#"]:
            return True
        if not pattern or not parts:
            return pattern == parts or (not parts and pattern == ["#"])
        return (pattern[0] == "+" or pattern[0] == parts[0]) and rest(pattern[1:], parts[1:])

    if topic.startswith("$") and topic_filter[0:1] in {"+", "#"}:
        return False
    return rest(topic_filter.split("/"), topic.split("/"))


@given(filters, names)
def test_matches_as_the_specification_says(topic_filter: str, topic: str) -> None:
    assert matches(topic_filter, topic) == slow_matches(topic_filter, topic)


@given(filters, filters, st.lists(names, max_size=30))
def test_overlap_and_covers_agree_with_matching(one: str, other: str, topics: list[str]) -> None:
    both = [topic for topic in topics if matches(one, topic) and matches(other, topic)]
    assert overlap(one, other) == overlap(other, one)
    assert overlap(one, other) or not both
    if covers(one, other):
        assert both == [topic for topic in topics if matches(other, topic)]
        assert overlap(one, other)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a/+", "+/b", True),
        ("a/#", "a", True),
        ("a/b", "a/c", False),
        ("a/+/c", "a/b", False),
        ("#", "$SYS/a", False),
        ("a/#", "+/b/c", True),
        ("a", "a/b", False),
    ],
)
def test_overlap(one: str, other: str, expected: bool) -> None:
    assert overlap(one, other) is expected


@given(filters, filters, st.lists(names, max_size=30))
def test_what_two_filters_have_in_common(one: str, other: str, topics: list[str]) -> None:
    both = common(one, other)
    assert (both is not None) is overlap(one, other)
    for topic in topics:
        assert (both is not None and matches(both, topic)) is (matches(one, topic) and matches(other, topic))


@pytest.mark.parametrize(
    ("topic_filter", "target", "topic", "expected"),
    [
        ("zigbee2mqtt/#", "site/7/zigbee2mqtt/{1}", "zigbee2mqtt/lamp/set", "site/7/zigbee2mqtt/lamp/set"),
        ("zigbee2mqtt/#", "site/7/zigbee2mqtt/{1}", "zigbee2mqtt", "site/7/zigbee2mqtt"),
        ("cmd/nanomq/#", "{1}", "cmd/nanomq/hello/world", "hello/world"),
        ("cmd/nanomq/#", "{1}", "cmd/nanomq", None),
        ("+/+/state", "{2}/of/{1}", "kitchen/lamp/state", "lamp/of/kitchen"),
        ("+/x/#", "a-{1}/{2}", "k/x/y/z", "a-k/y/z"),
        ("a/b", "c/d/", "a/b", "c/d/"),
        ("a/+", "b/{1}", "a/", "b/"),
        ("a/+", "b/{1}", "x/y", None),
        ("a/b", "fixed", "a/b", "fixed"),
        ("a/+", "", "a/b", "a/b"),
        ("a/#", "{1}", "a/$share/g/x", None),
        ("a/#", "{1}", "a/$CONTROL/x", None),
        ("a/#", "b/{1}", "a/$x", "b/$x"),
        ("a/#", "$x/{1}", "a/b", "$x/b"),
        ("$x/#", "", "$x/a", "$x/a"),
        # Not everything in braces is a wildcard.
        ("a/{1}/+", "", "a/{1}/b", "a/{1}/b"),
        ("a{1}/+", "b/{1}", "a{1}/x", "b/x"),
        ("a/+", "b/{1}", "a/{1}", "b/{1}"),
    ],
)
def test_rewrite(topic_filter: str, target: str, topic: str, expected: str | None) -> None:
    rewrite = Rewrite(topic_filter, target)
    assert rewrite.problem() is None
    assert rewrite.apply(topic) == expected


def slow_rewrite(topic_filter: str, target: str, topic: str) -> str | None:
    """With a regular expression, in which wildcards are groups."""
    groups = {"+": "([^/]*)", "#": "(.*)"}
    whole = "/".join(groups.get(level, re.escape(level)) for level in topic_filter.split("/"))
    found = re.fullmatch(whole, topic)
    parent = re.fullmatch(whole.removesuffix("/(.*)"), topic) if topic_filter.endswith("/#") else None
    if (found is None and parent is None) or not slow_matches(topic_filter, topic):
        return None
    parts = found.groups() if found is not None else (*parent.groups(), "") if parent is not None else ()
    levels = target.split("/")
    if found is None and levels[-1] == f"{{{len(parts)}}}" and len(levels) > 1:
        levels.pop()
    name = re.sub(r"{([0-9])}", lambda match: parts[int(match[1]) - 1], "/".join(levels))
    return None if not name or (name.startswith("$") and not target.startswith("$")) else name


@given(
    filters.filter(lambda topic_filter: "+" in topic_filter or "#" in topic_filter),
    st.lists(st.sampled_from(["a", "", "$x", "{1}", "{2}", "b-{1}", "{1}{2}", "{", "{x}"]), min_size=1, max_size=4),
    names,
)
@example("a/#", ["{1}"], "a")
@example("a/#", ["b", "{1}"], "a")
@example("+/#", ["b-{1}", "{2}"], "a")
@example("#", ["", "{1}"], "/")
def test_rewrites_as_a_regular_expression_does(topic_filter: str, levels: list[str], topic: str) -> None:
    target = "/".join(levels)
    rewrite = Rewrite(topic_filter, target)
    if target and rewrite.problem() is None:
        assert rewrite.apply(topic) == slow_rewrite(topic_filter, target, topic)


@pytest.mark.parametrize(
    ("topic_filter", "target", "problem"),
    [
        ("a/#", "b\0", "target_invalid"),
        ("a/#", "b\ud800", "target_invalid"),
        ("a/#", "b" * 65_536, "target_invalid"),
        ("a/#", "$share/group/{1}", "target_reserved"),
        ("a/#", "$SYS/{1}", "target_reserved"),
        ("a/+/#", "${1}/{2}", "target_reserved"),
        ("a/#", "b/#", "target_wildcard"),
        ("a/+", "b/+", "target_wildcard"),
        ("a/+", "b/{2}", "target_capture"),
        ("a/+", "b/{0}", "target_capture"),
        ("a", "{1}", "target_capture"),
        ("a/+", "{" + "1" * 5000 + "}", "target_capture"),
    ],
)
def test_bad_targets(topic_filter: str, target: str, problem: str) -> None:
    assert Rewrite(topic_filter, target).problem() == problem


@pytest.mark.parametrize(
    ("rewrite", "back"),
    [
        (Rewrite("zigbee2mqtt/#", "site/7/zigbee2mqtt/{1}"), Rewrite("site/7/zigbee2mqtt/#", "zigbee2mqtt/{1}")),
        (Rewrite("+/x/+", "{2}/{1}"), Rewrite("+/+", "{2}/x/{1}")),
        (Rewrite("a/b", "c"), Rewrite("c", "a/b")),
        (Rewrite("a/{1}/+", ""), Rewrite("a/{1}/+", "")),
        (Rewrite("a{1}/+", "b/{1}"), None),
        (Rewrite("+/#", "{2}/{1}"), None),
        (Rewrite("+", "x-{1}"), None),
        (Rewrite("+/+", "{1}"), None),
        (Rewrite("+", "{1}/{1}"), None),
    ],
)
def test_reversed(rewrite: Rewrite, back: Rewrite | None) -> None:
    assert rewrite.reversed() == back


@given(
    st.lists(st.sampled_from(["a", "b", "+"]), min_size=1, max_size=3),
    st.booleans(),
    st.permutations([1, 2, 3, 4]),
    names,
)
def test_there_and_back_is_the_same_topic(parts: list[str], tail: bool, order: list[int], topic: str) -> None:
    topic_filter = "/".join([*parts, "#"] if tail else parts)
    wildcards = topic_filter.count("+")
    middle = [f"{{{number}}}" for number in order if number <= wildcards]
    target = "/".join(["p", *middle, *([f"{{{wildcards + 1}}}"] if tail else [])])
    rewrite = Rewrite(topic_filter, target)
    back = rewrite.reversed()
    assert back is not None
    new = rewrite.apply(topic)
    if new is not None:
        assert back.apply(new) == topic
        assert matches(rewrite.result_filter, new)


def test_captures() -> None:
    assert captures("+/b/#", "a/b/c/d") == ("a", "c/d")
    assert captures("a/#", "a") == ("",)
    assert captures("a", "b") is None


@pytest.mark.parametrize(
    ("topic_filter", "problem"),
    [
        ("a/+/b/#", None),
        ("#", None),
        ("+", None),
        ("$SYS/#", None),
        ("", "filter_empty"),
        ("a\0b", "filter_invalid"),
        ("a/\ud800", "filter_invalid"),
        ("a" * 65_536, "filter_invalid"),
        ("a#", "filter_hash"),
        ("#/a", "filter_hash"),
        ("a+/b", "filter_plus"),
        ("$share/group/a", "filter_shared"),
    ],
)
def test_validate_filter(topic_filter: str, problem: str | None) -> None:
    assert validate_filter(topic_filter) == problem


@pytest.mark.parametrize("topic", [b"", b"a/#", b"+", b"a\0", b"\xff", b"a" * 65_536])
def test_invalid_topics(topic: bytes) -> None:
    assert not valid_topic(topic)
