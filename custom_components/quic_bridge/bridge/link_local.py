"""IPv6 addresses that are the same on each link, and the interfaces that lead to the links (RFC 4007 section 11)."""

import ipaddress
import socket


def is_link_local(host: str) -> bool:
    """Whether a host is a link-local IPv6 address, with its zone (as in fe80::1%eth0) or without."""
    try:
        return ipaddress.IPv6Address(host).is_link_local
    except ValueError:
        return False


def interfaces() -> str:
    """Name the network interfaces of this machine that a link may be behind."""
    return ", ".join(name for _, name in socket.if_nameindex() if name != "lo") or "none"


def interface_name(index: int) -> str:
    """Name an interface; one that has gone meanwhile by its number."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return str(index)
