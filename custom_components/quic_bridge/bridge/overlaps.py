"""Subscriptions that overlap: which they are, and how to tell them apart.

A broker may send a message once for each subscription that its topic matches (MQTT 5, 3.3.4), and mosquitto and EMQX
do. A filter that another one covers need not be subscribed, but neither of `+/temp` and `home/#` covers the other. So
these have Subscription Identifiers, by which `copies.py` knows a copy.
"""

from collections.abc import Iterator, Mapping, Sequence
import itertools

from .topic_tree import TopicTree


def overlapping(filters: Sequence[str]) -> dict[str, list[str]]:
    """Return the filters that overlap others of them, in their order, each with those others."""
    tree = TopicTree((topic_filter, topic_filter) for topic_filter in filters)
    found = {}
    for topic_filter in filters:
        if others := [other for other in tree.overlapping(topic_filter) if other != topic_filter]:
            found[topic_filter] = others
    return found


def groups(overlaps: Mapping[str, Sequence[str]]) -> Iterator[list[str]]:
    """Yield the filters of `overlapping` in groups: whatever overlaps is in the same one."""
    seen = set[str]()
    for first in overlaps:
        if first in seen:
            continue
        seen.add(first)
        group = [first]
        for topic_filter in group:
            new = [other for other in overlaps[topic_filter] if other not in seen]
            seen.update(new)
            group += new
        yield group


def identifiers(overlaps: Mapping[str, Sequence[str]], present: Mapping[str, int]) -> dict[str, int]:
    """Give the filters of `overlapping` numbers from 1 on that differ wherever two overlap.

    A SUBSCRIBE has one identifier for all its filters, so the fewer there are, the fewer packets. Filters keep the
    numbers that they have at `present`, as far as possible, so that few are to be subscribed again.
    """
    chosen: dict[str, int] = {}
    for topic_filter in sorted(overlaps, key=lambda name: name not in present):
        taken = {chosen[other] for other in overlaps[topic_filter] if other in chosen}
        number = present.get(topic_filter)
        if number is None or number in taken:
            number = next(number for number in itertools.count(1) if number not in taken)
        chosen[topic_filter] = number
    return chosen
