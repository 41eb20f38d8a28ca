"""Topic names and filters (MQTT 5, 4.7), and rewriting one topic into another."""

from dataclasses import dataclass
import re
from typing import Final

MAX_TOPIC_BYTES: Final = 65_535
_CAPTURE: Final = re.compile(r"\{(\d+)\}")
_BROKERS_OWN: Final = frozenset({"$SYS", "$share"})
"""First levels of names under which nobody can publish."""
_MOST_DIGITS: Final = 5
"""Of the number of a wildcard: no filter has room for 100,000."""


def validate_filter(topic_filter: str) -> str | None:
    """Say what is wrong with a topic filter, as a translation key; None: nothing."""
    if not topic_filter:
        return "filter_empty"
    if not _encodable(topic_filter):
        return "filter_invalid"
    levels = topic_filter.split("/")
    if any("#" in level and level != "#" for level in levels) or "#" in levels[:-1]:
        return "filter_hash"
    if any("+" in level and level != "+" for level in levels):
        return "filter_plus"
    if levels[0] == "$share":
        return "filter_shared"
    return None


def _encodable(text: str) -> bool:
    """Whether a text can be sent as a topic or filter: no NUL, no half of a surrogate pair, not too long."""
    try:
        return "\0" not in text and len(text.encode()) <= MAX_TOPIC_BYTES
    except UnicodeEncodeError:
        return False


def valid_topic(topic: bytes) -> bool:
    """Whether a topic may stand in a PUBLISH: UTF-8, no wildcard, no NUL, neither empty nor too long."""
    if not 0 < len(topic) <= MAX_TOPIC_BYTES or b"+" in topic or b"#" in topic or b"\0" in topic:
        return False
    try:
        topic.decode()
    except UnicodeDecodeError:
        return False
    return True


def has_wildcards(topic_filter: str) -> bool:
    """Whether a filter stands for more than one topic."""
    return "+" in topic_filter or "#" in topic_filter


def captures(topic_filter: str, topic: str) -> tuple[str, ...] | None:
    """Return what the wildcards of a filter stand for in a topic, in their order; None: the topic does not match.

    `#` also matches the parent, and stands for nothing there; wildcards never match a leading $ (MQTT 5, 4.7.1.2).
    """
    if topic[:1] == "$" and topic_filter[:1] in {"+", "#"}:
        return None
    filter_levels, topic_levels = topic_filter.split("/"), topic.split("/")
    found: list[str] = []
    for position, level in enumerate(filter_levels):
        if level == "#":
            return (*found, "/".join(topic_levels[position:]))
        if position >= len(topic_levels):
            return None
        if level == "+":
            found.append(topic_levels[position])
        elif level != topic_levels[position]:
            return None
    return tuple(found) if len(filter_levels) == len(topic_levels) else None


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a topic falls under a filter."""
    return captures(topic_filter, topic) is not None


def covers(wider: str, narrower: str) -> bool:
    """Whether every topic under the filter `narrower` also falls under `wider`."""
    if narrower[:1] == "$" and wider[:1] in {"+", "#"}:
        return False
    wide, narrow = wider.split("/"), narrower.split("/")
    for position, level in enumerate(wide):
        if level == "#":
            return True
        if position >= len(narrow) or narrow[position] == "#":
            return False
        if level not in {"+", narrow[position]}:
            return False
    return len(wide) == len(narrow)


def overlap(one: str, other: str) -> bool:
    """Whether some topic falls under both filters."""
    for name, pattern in ((one, other), (other, one)):
        if name[:1] == "$" and pattern[:1] in {"+", "#"}:
            return False
    lefts, rights = one.split("/"), other.split("/")
    for position in range(max(len(lefts), len(rights))):
        left = lefts[position] if position < len(lefts) else None
        right = rights[position] if position < len(rights) else None
        if "#" in {left, right}:
            return True
        if left is None or right is None or (left != right and "+" not in {left, right}):
            return False
    return True


def common(one: str, other: str) -> str | None:
    """Return the filter under which those topics fall that fall under both filters; None: there are none."""
    if not overlap(one, other):
        return None
    lefts, rights = one.split("/"), other.split("/")
    levels: list[str] = []
    for position, (left, right) in enumerate(zip(lefts, rights, strict=False)):
        if left == "#":
            return "/".join([*levels, *rights[position:]])
        if right == "#":
            return "/".join([*levels, *lefts[position:]])
        levels.append(right if left == "+" else left)
    return "/".join(levels)  # the longer one, if there is one, has only `#` more


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Topics under `topic_filter` become `target`, in which {1}, {2}, ... stand for its wildcards in their order.

    With an empty target they keep their names, whatever is in braces there.
    """

    topic_filter: str
    target: str

    def apply(self, topic: str) -> str | None:
        """Return the new name of a topic; None: it does not fall under the filter, or has no valid new name."""
        name = self._renamed(topic)
        if name is None or not valid_topic(name.encode()):
            return None
        # As wildcards stand for no leading $ they make none (MQTT 5, 4.7.2): what is under such names is the broker's.
        # mosquitto takes commands there, and ends the connection for a message to $share.
        return None if name[0] == "$" and self.target[:1] not in {"", "$"} else name

    def apply_to_filter(self, topic_filter: str) -> str | None:
        """Return the filter of the new names of topics under another filter; None: there are none.

        Only for what can be `reversed`: a wildcard that becomes a part of a level leaves no filter.
        """
        both = common(self.topic_filter, topic_filter)
        name = self._renamed(both) if both is not None else None
        return name or None

    def _renamed(self, topic: str) -> str | None:
        found = captures(self.topic_filter, topic)
        if found is None:
            return None
        if not self.target:
            return topic
        levels = [_CAPTURE.sub(lambda match: found[int(match[1]) - 1], level) for level in self.target.split("/")]
        if topic.count("/") < self.topic_filter.count("/") and self.target.endswith(f"/{{{len(found)}}}"):
            levels.pop()  # `a/#` matches `a` too: then `b/{1}` is `b`, as under a prefix
        return "/".join(levels)

    def problem(self) -> str | None:
        """Say what is wrong with the target, as a translation key; None: nothing."""
        if not _encodable(self.target):
            return "target_invalid"
        if "+" in self.target or "#" in self.target:
            return "target_wildcard"
        first = self.target.split("/")[0]
        if first in _BROKERS_OWN or (first[:1] == "$" and _CAPTURE.search(first)):
            return "target_reserved"
        wildcards = sum(level in {"+", "#"} for level in self.topic_filter.split("/"))
        numbers = _CAPTURE.findall(self.target)
        if any(len(number) > _MOST_DIGITS or not 1 <= int(number) <= wildcards for number in numbers):
            return "target_capture"
        return None

    def reversed(self) -> Rewrite | None:
        """The way back; None: there is none, as the target does not say for each wildcard, once and as a whole level.

        A `#` can only come back from the end of the target, and what is in braces in the filter not at all.
        """
        if not self.target:
            return self
        if _CAPTURE.search(self.topic_filter):
            return None
        wildcards = [level for level in self.topic_filter.split("/") if level in {"+", "#"}]
        order: list[int] = []
        levels: list[str] = []
        for level in self.target.split("/"):
            whole = _CAPTURE.fullmatch(level)
            if whole is not None:
                number = int(whole[1])
                order.append(number)
                levels.append(wildcards[number - 1])
            elif _CAPTURE.search(level):
                return None
            else:
                levels.append(level)
        if sorted(order) != list(range(1, len(wildcards) + 1)) or "#" in levels[:-1]:
            return None
        back = iter(range(1, len(wildcards) + 1))
        place = {number: position for position, number in enumerate(order, 1)}
        target = "/".join(
            f"{{{place[next(back)]}}}" if level in {"+", "#"} else level for level in self.topic_filter.split("/")
        )
        return Rewrite("/".join(levels), target)

    @property
    def result_filter(self) -> str:
        """The narrowest filter without partial levels under which all new names fall."""
        if not self.target:
            return self.topic_filter
        wildcards = [level for level in self.topic_filter.split("/") if level in {"+", "#"}]
        levels: list[str] = []
        for level in self.target.split("/"):
            numbers = [int(number) for number in _CAPTURE.findall(level)]
            if any(wildcards[number - 1] == "#" for number in numbers):
                levels.append("#")
                break
            levels.append("+" if numbers else level)
        return "/".join(levels)
