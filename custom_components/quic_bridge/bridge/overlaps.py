"""Subscriptions that overlap: which they are, and how to tell them apart.

A broker may send a message once for each subscription that its topic matches (MQTT 5, 3.3.4), and mosquitto and EMQX
do. A filter that another one covers need not be subscribed, but neither of `+/temp` and `home/#` covers the other. So
these have Subscription Identifiers, by which `copies.py` knows a copy.
"""

from collections.abc import Iterator, Mapping, Sequence
import itertools

from .topic_tree import TopicTree


def overlapping(filters: Sequence[str]) -> list[str]:
    """Return the filters that overlap others of them, in their order."""
    tree = TopicTree((topic_filter, topic_filter) for topic_filter in filters)
    # Only whether there is another: hundreds may overlap hundreds.
    return [name for name in filters if any(other != name for other in tree.overlapping(name))]


def groups(filters: Sequence[str]) -> Iterator[list[str]]:
    """Yield the filters in groups: whatever overlaps is in the same one."""
    tree = TopicTree((topic_filter, topic_filter) for topic_filter in filters)
    grouped = set[str]()
    for first in filters:
        if first in grouped:
            continue
        tree.discard(first)
        group = [first]
        for topic_filter in group:
            found = list(tree.overlapping(topic_filter))
            group += found
            # Out of the way: hundreds may overlap the same hundreds, and none is to be found twice.
            for other in found:
                tree.discard(other)
        grouped.update(group)
        yield group


def identifiers(filters: Sequence[str], present: Mapping[str, int]) -> dict[str, int]:
    """Give filters numbers from 1 on that differ wherever two overlap.

    A SUBSCRIBE has one identifier for all its filters, so the fewer there are, the fewer packets. Filters with their
    wildcards in the same places do not overlap each other, so they have the same number: the one that such a filter has
    at `present`, if there is one, so that few are to be subscribed again.
    """
    numbers: dict[str, int] = {}
    for topic_filter, number in present.items():
        if number not in numbers.values():
            numbers.setdefault(_places(topic_filter), number)
    free = (number for number in itertools.count(1) if number not in numbers.values())
    chosen: dict[str, int] = {}
    for topic_filter in filters:
        places = _places(topic_filter)
        if places not in numbers:
            numbers[places] = next(free)
        chosen[topic_filter] = numbers[places]
    return chosen


def _places(topic_filter: str) -> str:
    """Return the wildcards of a filter in their places."""
    return "/".join(level if level in {"+", "#"} else "" for level in topic_filter.split("/"))
