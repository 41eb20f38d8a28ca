"""Many topic filters by their levels: which cover a topic or a filter, or overlap it, without a look at all others."""

from collections.abc import Iterable, Iterator


class _Node[T]:
    """One level of filters; `#` is a child like the others. Most nodes have either children or values."""

    __slots__ = ("children", "values")

    def __init__(self) -> None:
        self.children: dict[str, _Node[T]] | None = None
        self.values: tuple[T, ...] = ()


class TopicTree[T]:
    """Values by topic filters; one filter may have several values."""

    def __init__(self, items: Iterable[tuple[str, T]] = ()) -> None:
        """Begin with filters and their values."""
        self._root = _Node[T]()
        for topic_filter, value in items:
            self.add(topic_filter, value)

    def add(self, topic_filter: str, value: T) -> None:
        """Add a value under a filter, which must be valid."""
        node = self._root
        for level in topic_filter.split("/"):
            children = node.children
            if children is None:
                children = node.children = {}
            following = children.get(level)
            if following is None:
                following = children[level] = _Node()
            node = following
        node.values = (*node.values, value)

    def discard(self, topic_filter: str) -> None:
        """Forget a filter and its values, if it is here: no look for others passes there any more."""
        node = self._root
        path: list[tuple[dict[str, _Node[T]], str]] = []
        for level in topic_filter.split("/"):
            children = node.children
            if children is None or level not in children:
                return
            path.append((children, level))
            node = children[level]
        node.values = ()
        for children, level in reversed(path):
            node = children[level]
            if node.values or node.children:
                return
            del children[level]

    def covering(self, topic: str) -> Iterator[T]:
        """Yield the values of all filters that cover a topic, or a filter (see `topics.covers`), in no order.

        The work is with the number of filters that share their first levels with it, and grows with its levels.
        """
        nodes = [self._root]
        wild = not topic.startswith("$")  # wildcards do not stand for a leading $ (MQTT 5, 4.7.1.2)
        for level in topic.split("/"):
            following: list[_Node[T]] = []
            for node in nodes:
                children = node.children
                if children is None:
                    continue
                if wild and (rest := children.get("#")) is not None:
                    yield from rest.values
                if level == "#":
                    continue
                if (same := children.get(level)) is not None:
                    following.append(same)
                if wild and level != "+" and (any_level := children.get("+")) is not None:
                    following.append(any_level)
            if not following:
                return
            nodes = following
            wild = True
        yield from self._at(nodes)

    def overlapping(self, topic_filter: str) -> Iterator[T]:
        """Yield the values of all filters that some topic under this one falls under, too (see `topics.overlap`).

        In no order.
        """
        nodes = [self._root]
        wild = not topic_filter.startswith("$")
        for position, level in enumerate(topic_filter.split("/")):
            if level == "#":
                yield from self._below(nodes)
                return
            following: list[_Node[T]] = []
            for node in nodes:
                children = node.children
                if children is None:
                    continue
                if wild and (rest := children.get("#")) is not None:
                    yield from rest.values
                if level == "+":
                    following += [
                        child for name, child in children.items() if name != "#" and (position or name[:1] != "$")
                    ]
                    continue
                if (same := children.get(level)) is not None:
                    following.append(same)
                if wild and (any_level := children.get("+")) is not None:
                    following.append(any_level)
            if not following:
                return
            nodes = following
            wild = True
        yield from self._at(nodes)

    @staticmethod
    def _at(nodes: list[_Node[T]]) -> Iterator[T]:
        """Yield the values of nodes, and of `#` under them, which has the level above it, too."""
        for node in nodes:
            yield from node.values
            if node.children is not None and (rest := node.children.get("#")) is not None:
                yield from rest.values

    def _below(self, nodes: list[_Node[T]]) -> Iterator[T]:
        """Yield the values of nodes and of all that is under them; not what begins with $."""
        nodes = list(nodes)
        while nodes:
            node = nodes.pop()
            yield from node.values
            if node.children is not None:
                nodes += [child for name, child in node.children.items() if node is not self._root or name[:1] != "$"]
