"""The routes of a run and their topics: some stay as they are, others change all the time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..support.bridge_process import RouteSetting

UP, DOWN = "to_remote", "to_local"


@dataclass(slots=True, kw_only=True)
class Group:
    """The messages of one route, or of one way of a route for both ways."""

    name: str
    """The topics' first levels."""
    direction: str
    qos: Sequence[int]
    topics: int = 1
    """For each QoS."""

    @property
    def all_topics(self) -> list[tuple[str, int]]:
        """The topics where they are published, each with its QoS."""
        return [(f"{self.name}/{qos}/{number}", qos) for qos in self.qos for number in range(self.topics)]

    @property
    def may_fall(self) -> bool:
        """Whether its messages wait here for some time only."""
        return self.name in AGED

    @property
    def may_come_twice(self) -> bool:
        """Whether its messages may be delivered twice, also with QoS 2."""
        return self.name in CROSSED

    def arrives_as(self, topic: str) -> Sequence[str]:
        """Return the names that a topic may have at the other broker."""
        return [f"{target}/{topic}" for target in TARGETS] if self.name in MOVED else [topic]


@dataclass(slots=True)
class Setting:
    """A route as it is now."""

    direction: str
    topic_filter: str
    options: dict[str, object] = field(default_factory=dict)
    present: bool = True


TARGETS = ("there", "elsewhere")
"""The first level of the names under which the messages of `MOVED` arrive."""
GROUPS: Mapping[str, Group] = {
    group.name: group
    for group in (
        Group(name="up/own", direction=UP, qos=(0, 1, 2)),
        Group(name="up/urgent", direction=UP, qos=(1, 2)),
        Group(name="up/lazy", direction=UP, qos=(1, 2)),
        Group(name="up/aged", direction=UP, qos=(1, 2)),
        Group(name="up/state", direction=UP, qos=(0,)),
        Group(name="up/queue", direction=UP, qos=(0,)),
        Group(name="up/moved", direction=UP, qos=(1, 2)),
        Group(name="up/plain", direction=UP, qos=(0, 1, 2), topics=2),
        Group(name="coming/up", direction=UP, qos=(0, 1, 2)),
        Group(name="cross/up", direction=UP, qos=(1, 2)),
        Group(name="both/up", direction=UP, qos=(0, 1, 2)),
        Group(name="both/down", direction=DOWN, qos=(0, 1, 2)),
        Group(name="down/aged", direction=DOWN, qos=(1, 2)),
        Group(name="down/state", direction=DOWN, qos=(0,)),
        Group(name="down/queue", direction=DOWN, qos=(0,)),
        Group(name="down/moved", direction=DOWN, qos=(1, 2)),
        Group(name="down/plain", direction=DOWN, qos=(0, 1, 2), topics=2),
        Group(name="cross/down", direction=DOWN, qos=(1, 2)),
        Group(name="coming/down", direction=DOWN, qos=(0, 1, 2)),
    )
}
MOVED = ("up/moved", "down/moved")
AGED = ("up/aged", "down/aged")
CROSSED = ("cross/up", "cross/down")
"""Their topics have two routes each, for which a broker may send each message twice. One copy crosses, or both where
the bridge cannot be sure, as after it was killed."""
KEPT = ("up/state/", "up/queue/")
"""QoS 0 that waits in the Outbox."""
COMING = ("coming/up", "coming/down")


class Routes:
    """All routes, in their order, by name."""

    def __init__(self) -> None:
        self._settings: dict[str, Setting] = {}
        for group in GROUPS.values():
            if group.name in CROSSED:
                self._settings[group.name] = Setting(group.direction, f"{group.name}/+/0")
                for qos in group.qos:
                    self._settings[f"{group.name} {qos}"] = Setting(group.direction, f"{group.name}/{qos}/+")
            elif not group.name.startswith("both/"):
                self._settings[group.name] = Setting(group.direction, f"{group.name}/#")
        self._settings["both"] = Setting("both", "both/#")
        self["up/own"].options["own_stream"] = True
        for name in AGED:
            self[name].options["max_age"] = 2.0
        for way in ("up", "down"):
            # The last one takes what those before leave, by a filter that covers most of theirs.
            self[f"{way}/plain"].topic_filter = f"{way}/#"
            self[f"{way}/state"].options["qos_0"] = "latest"
            self[f"{way}/queue"].options["qos_0"] = "queue"
        for name in MOVED:
            self.move(name, TARGETS[0])

    def __getitem__(self, name: str) -> Setting:
        return self._settings[name]

    def move(self, name: str, target: str) -> None:
        """Let the messages of a route arrive under another name."""
        self[name].options["target"] = f"{target}/{name}/{{1}}"

    def as_settings(self) -> Sequence[RouteSetting]:
        """Return what the bridge is told."""
        return [
            (item.direction, item.topic_filter, {"id": name, **item.options})
            for name, item in self._settings.items()
            if item.present
        ]
