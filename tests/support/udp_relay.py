"""A UDP relay between clients and a server, like a NAT on a bad line: its outer port can change under a connection."""

from typing import Self

from .udp import Address, Impairment, Shaper, UdpEndpoint


class UdpRelay:
    """Datagrams that come to `address` go on to `target` from a port of each client's own, answers go back.

    A target that is not there stays silent: ICMP does not pass.
    """

    def __init__(self, target: Address, *, seed: int = 1) -> None:
        self.target = target
        self._inner = UdpEndpoint(self._from_client)
        self._outer: dict[Address, UdpEndpoint] = {}
        self._up = Shaper(self._to_server, seed=seed)
        self._down = Shaper(self._inner.send, seed=seed + 1)

    @property
    def address(self) -> Address:
        """Where clients send to."""
        return self._inner.address

    @property
    def to_server(self) -> Impairment:
        """What happens to datagrams on their way to the server."""
        return self._up.impairment

    @property
    def to_client(self) -> Impairment:
        """What happens to datagrams on their way to clients."""
        return self._down.impairment

    @property
    def passed(self) -> tuple[int, int]:
        """Datagrams that went through, to the server and to clients."""
        return self._up.passed, self._down.passed

    @property
    def dropped(self) -> tuple[int, int]:
        """Datagrams that did not."""
        return self._up.dropped, self._down.dropped

    @property
    def outer_ports(self) -> list[int]:
        """The ports the server sees, in the order of the clients' first datagrams."""
        return [endpoint.address[1] for endpoint in self._outer.values()]

    def start(self, port: int = 0) -> None:
        """Open the inner port."""
        self._inner.open(port=port)

    def stop(self) -> None:
        """Close everything."""
        for shaper in (self._up, self._down):
            shaper.close()
        for endpoint in (self._inner, *self._outer.values()):
            endpoint.close()
        self._outer.clear()

    def rebind(self) -> None:
        """Give every client a new outer port; what the server sends to the old ones is lost, as with a NAT."""
        for client, old in list(self._outer.items()):
            # The new one is opened first, so that it cannot get the same port.
            self._outer[client] = self._open(client)
            old.close()

    def cut_off(self) -> None:
        """Forget the clients of now as a firewall does: nothing passes between them and the server any more."""
        for endpoint in self._outer.values():
            endpoint.incoming.impairment.blackhole = endpoint.outgoing.impairment.blackhole = True

    def _open(self, client: Address) -> UdpEndpoint:
        endpoint = UdpEndpoint(lambda data, _: self._down.push(data, client))
        endpoint.open()
        return endpoint

    def _from_client(self, data: bytes, client: Address) -> None:
        if client not in self._outer:
            self._outer[client] = self._open(client)
        self._up.push(data, client)

    def _to_server(self, data: bytes, client: Address) -> None:
        self._outer[client].send(data, self.target)

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()
