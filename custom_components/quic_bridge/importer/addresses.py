"""The addresses of another bridge, each put where this one has a place for it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from .model import Address, Carrier, Endpoints, Reason


def arrange(addresses: Sequence[Address]) -> tuple[Endpoints, list[tuple[Address, Reason]]]:
    """Return where at least one address goes, and what is to be said of those that are not what they were.

    What is reached over QUIC already goes first. Without such an address all are taken for nodes whose QUIC port is
    not known yet. The first with TLS becomes the fallback: that way was good so far.
    """
    over_quic = [address for address in addresses if address.carrier is Carrier.QUIC]
    if over_quic:
        main, *further = dict.fromkeys(over_quic)
    else:
        main = addresses[0]
        hosts = dict.fromkeys(address.host for address in addresses[1:] if address.host != main.host)
        further = [Address(host=host) for host in hosts]
    fallback = next((address for address in addresses if address.carrier is Carrier.TLS), None)
    endpoints = Endpoints(main=main, further=tuple(further), fallback=fallback)
    return endpoints, list(_remarks(addresses, endpoints))


def _remarks(addresses: Sequence[Address], endpoints: Endpoints) -> Iterator[tuple[Address, Reason]]:
    main = endpoints.main
    if main.carrier is not Carrier.QUIC:
        yield main, Reason.TCP
    for address in dict.fromkeys(addresses):
        if address == main:
            continue
        known = address if main.carrier is Carrier.QUIC else replace(address, port=None, carrier=Carrier.TCP)
        if known in endpoints.further:
            yield address, Reason.ADDRESSES
        elif address != endpoints.fallback:
            yield address, Reason.ADDRESS_LEFT
