"""How much of what a TCP socket was given the other host has not acknowledged: the kernel knows (tcp(7), SIOCOUTQ)."""

import fcntl
import socket
import termios


def unacknowledged(sock: socket.socket) -> int:
    """Return the bytes in the socket's send queue, sent or not; 0 where the kernel does not tell."""
    answer = bytearray(4)
    try:
        fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, answer)
    except OSError:
        return 0
    return int.from_bytes(answer, "little")
