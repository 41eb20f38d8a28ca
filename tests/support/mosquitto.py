"""A real mosquitto on loopback, in a folder of its own."""

import asyncio
import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
import getpass
import hashlib
import os
from pathlib import Path
import shutil
from typing import override

from .certs import Certificate
from .processes import PATIENCE, Service, free_port, tcp_answers

HOST = "127.0.0.1"
_SYSTEM_PATHS = ("/usr/sbin", "/usr/local/sbin")
_PROGRAM = "QUIC_BRIDGE_MOSQUITTO"
"""Environment variable with the path of another mosquitto than the installed one, to try another version."""
_ATTEMPTS = 5


def mosquitto_path() -> str:
    """Find the program; raises FileNotFoundError with what to install."""
    wanted = os.environ.get(_PROGRAM, "mosquitto")
    found = shutil.which(wanted, path=os.pathsep.join((os.environ.get("PATH", ""), *_SYSTEM_PATHS)))
    if found is None:
        raise FileNotFoundError(
            "mosquitto is not installed (Debian and Ubuntu: apt install mosquitto)"
            if wanted == "mosquitto"
            else f"{_PROGRAM} names no program: {wanted}"
        )
    return found


@dataclass(kw_only=True)
class MosquittoOptions:
    """What the configuration file says; None leaves mosquitto's default."""

    persistence: bool = False
    """Keep sessions, queues and retained messages over `stop` and `start` (not over `kill`)."""
    users: Mapping[str, str] | None = None
    """User names and passwords; None lets everybody in."""
    acl: str | None = None
    """Text of the ACL file."""
    max_inflight_messages: int | None = None
    """Also the Receive Maximum that MQTT 5 clients are told (default 20)."""
    max_queued_messages: int | None = None
    """Messages kept for a client that is away (default 1000), the rest is dropped; 0: no bound."""
    max_packet_size: int = 268_435_455
    """Bytes. Said in any case, as the default became 2 MB with mosquitto 2.1 (before: no bound)."""
    tls: Certificate | None = None
    """With it there is a second listener for TLS, on `tls_port`."""
    client_ca_file: Path | None = None
    """With it the TLS listener wants client certificates of this authority."""
    extra: Sequence[str] = field(default_factory=list)
    """Further lines of the configuration, before the listeners."""


def _password_line(user: str, password: str) -> str:
    # mosquitto's own format: $7$ is PBKDF2-HMAC-SHA512.
    salt, iterations = os.urandom(12), 101
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, iterations)
    return f"{user}:$7${iterations}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}\n"


class Mosquitto(Service):
    """One broker. The port is chosen at the first start and stays the same over restarts.

    `options` may be changed between a stop and the next start.
    """

    host = HOST

    def __init__(
        self, folder: Path, options: MosquittoOptions | None = None, *, port: int = 0, name: str = "mosquitto"
    ) -> None:
        super().__init__(name, folder / f"{name}.log")
        self.folder = folder
        self.options = options or MosquittoOptions()
        self.port = port
        self.tls_port = 0
        self._fixed_port = bool(port)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the plain listener."""
        return self.host, self.port

    def _write_configuration(self) -> Path:
        options = self.options
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [
            # Started as root, it would change to a user that cannot write here.
            f"user {getpass.getuser()}",
            "log_dest stderr",
            "log_type all",
            "set_tcp_nodelay true",
            "per_listener_settings false",
            f"persistence {'true' if options.persistence else 'false'}",
        ]
        if options.persistence:
            lines.append(f"persistence_location {self.folder}/")
        if options.users is None:
            lines.append("allow_anonymous true")
        else:
            password_file = self.folder / f"{self.name}.passwd"
            password_file.touch(mode=0o600)
            password_file.write_text("".join(_password_line(*item) for item in options.users.items()))
            lines += ["allow_anonymous false", f"password_file {password_file}"]
        if options.acl is not None:
            acl_file = self.folder / f"{self.name}.acl"
            acl_file.touch(mode=0o600)
            acl_file.write_text(options.acl)
            lines.append(f"acl_file {acl_file}")
        lines.append(f"max_packet_size {options.max_packet_size}")
        for setting in ("max_inflight_messages", "max_queued_messages"):
            if (value := getattr(options, setting)) is not None:
                lines.append(f"{setting} {value}")
        lines += options.extra
        lines.append(f"listener {self.port} {self.host}")
        if options.tls is not None:
            lines += [
                f"listener {self.tls_port} {self.host}",
                f"certfile {options.tls.cert_file}",
                f"keyfile {options.tls.key_file}",
            ]
            if options.client_ca_file is not None:
                lines += [f"cafile {options.client_ca_file}", "require_certificate true"]
        path = self.folder / f"{self.name}.conf"
        path.write_text("\n".join(lines) + "\n")
        return path

    @override
    async def start(self) -> None:
        """Start it and wait until it accepts connections; raises RuntimeError with its log when it does not."""
        program = mosquitto_path()
        for _ in range(_ATTEMPTS):
            if not self._fixed_port:
                self.port = free_port()
            if self.options.tls is not None and not (self._fixed_port and self.tls_port):
                self.tls_port = free_port()
            await self.spawn([program, "-c", self._write_configuration()], cwd=self.folder)
            if await self._ready():
                self._fixed_port = True
                return
            if self._fixed_port:
                break
        raise RuntimeError(f"{self.name} did not start:\n{self.log}")

    async def _ready(self) -> bool:
        ports = [self.port, *([self.tls_port] if self.options.tls else [])]
        try:
            async with asyncio.timeout(PATIENCE):
                while self.running and ports:
                    if await tcp_answers(self.host, ports[0]):
                        del ports[0]
                    else:
                        await asyncio.sleep(0.005)
        except TimeoutError:
            await self.stop()
        return self.running
