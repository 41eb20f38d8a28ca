"""Configuration files of other bridges, read into one description; without Home Assistant, files or sockets."""

import re
from typing import Final

from . import mosquitto, nanomq
from .model import FileError, FileProblem, ImportedBridge

__all__ = ["MAX_SIZE", "read_bridges"]

MAX_SIZE: Final = 256 * 1024
"""Bytes; a broker's whole configuration with all its comments is a fifth of this."""

_COMMENT: Final = re.compile(rb"^[ \t]*(#|//)[^\r\n]*", re.MULTILINE)


def read_bridges(content: bytes) -> list[ImportedBridge]:
    """Return the bridges that a configuration file of mosquitto or NanoMQ describes; may take a while.

    Raises FileError.
    """
    if len(content) > MAX_SIZE:
        raise FileError(FileProblem.TOO_LARGE, str(MAX_SIZE // 1024))
    try:
        # Brokers do not read comments, which may be of the days of other encodings.
        text = _COMMENT.sub(b"", content).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(FileProblem.UNREADABLE, f"not UTF-8: {error.reason}") from None
    found = mosquitto.read(text) if mosquitto.recognises(text) else nanomq.read(text)
    if not found:
        raise FileError(FileProblem.NO_BRIDGE)
    return found
