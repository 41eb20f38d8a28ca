"""Everything the demo runs, started in order and stopped in order."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
import json
from pathlib import Path
import shutil
import socket
from typing import Final, Self, override

from tests.support.certs import Authority, Certificate
from tests.support.front_process import FrontProcess
from tests.support.hass import HomeAssistant
from tests.support.hass_api import HomeAssistantApi
from tests.support.mosquitto import Mosquitto, MosquittoOptions
from tests.support.processes import ManagedProcess, free_port

HOST: Final = "127.0.0.1"
USER: Final = "demo"
PASSWORD: Final = "demo"
DOMAIN: Final = "quic_bridge"
SENT_TOPICS: Final = "home/#"
RECEIVED_TOPICS: Final = "office/#"
RUNNING_TIMEOUT: Final = 60.0


class DemoError(Exception):
    """The demo cannot run; the text says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Where everything listens, on loopback. 0: any free port."""

    hass: int = 0
    local: int = 0
    remote: int = 0
    quic: int = 0

    def chosen(self) -> Self:
        """Replace 0 by free ports; raises DemoError when one of the others is taken."""
        for name, port in asdict(self).items():
            if port and not port_is_free(port):
                raise DemoError(f"port {port} is taken: choose another one with --{name}-port")
        return type(self)(**{name: port or free_port() for name, port in asdict(self).items()})


def port_is_free(port: int) -> bool:
    """Whether a port of loopback is free for TCP and UDP."""
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tcp.bind((HOST, port))
            udp.bind((HOST, port))
        except OSError:
            return False
    return True


class _Dependent(ManagedProcess):
    """Ends when the demo ends, even by kill -9, and is out of reach of the terminal's Ctrl-C, which the demo handles.

    Where the two little programs for it are missing, only the demo's own orderly end stops the process.
    """

    @override
    async def spawn(self, command: Sequence[str | Path], cwd: Path | None = None) -> None:
        prefix: list[str | Path] = []
        if (setpriv := shutil.which("setpriv")) and (setsid := shutil.which("setsid")):
            prefix = [setpriv, "--pdeathsig", "TERM", setsid]
        await super().spawn([*prefix, *command], cwd)


class _Broker(_Dependent, Mosquitto):
    pass


class _Front(_Dependent, FrontProcess):
    pass


class _HomeAssistant(_Dependent, HomeAssistant):
    pass


class Stage:
    """The demo's processes and the bridge in Home Assistant."""

    def __init__(self, folder: Path, ports: Ports) -> None:
        """Take the data folder: empty, or the one of an earlier demo with the same ports."""
        self.folder = folder
        self.ports = ports
        certificate, self.ca_pem = _certificates(folder / "certificates")
        # As many as mosquitto keeps by default for a client that is away, and on disk, as in real life.
        options = MosquittoOptions(persistence=True)
        self.local = _Broker(folder / "local", options, port=ports.local, name="mosquitto")
        self.remote = _Broker(folder / "remote", options, port=ports.remote, name="mosquitto")
        self.front = _Front(folder, (HOST, ports.remote), certificate, port=ports.quic)
        self.hass = _HomeAssistant(folder / "hass", port=ports.hass)
        self.api = HomeAssistantApi(self.hass.url)
        self.entry_id = ""
        self.entities: dict[str, str] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start everything and configure the bridge; what fails or is interrupted is stopped again."""
        try:
            for service in (self.local, self.remote, self.front, self.hass):
                # Registered first: what is interrupted in its start is stopped too.
                self._stack.push_async_callback(service.stop)
                await service.start()
            await self._configure()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop what runs, in the opposite order."""
        # Home Assistant waits for its clients when it stops: the API's connections go first.
        await self.api.close()
        await self._stack.aclose()

    async def _configure(self) -> None:
        await self.api.onboard("Demo", USER, PASSWORD)
        await self.api.wait_running(RUNNING_TIMEOUT)
        if await self.api.entry_of("mqtt") is None:
            await self.api.run_flow("mqtt", {"broker": HOST, "port": self.ports.local})
        self.entry_id = await self.api.entry_of(DOMAIN) or await self.api.run_flow(DOMAIN, self._answers())
        self.entities = await self.api.entities(self.entry_id)

    def _answers(self) -> dict[str, object]:
        """What a person types into the bridge's config flow."""
        return {
            "menu:user": "local",
            "host": "localhost",
            "port": self.ports.quic,
            "ca": self.ca_pem,
            "send": [SENT_TOPICS],
            "receive": [RECEIVED_TOPICS],
        }

    async def states(self) -> dict[str, str]:
        """Read the states of the bridge's entities, by their keys; an entity without state is left out."""
        states = await self.api.states()
        return {key: states[entity_id] for key, entity_id in self.entities.items() if entity_id in states}

    async def device_url(self) -> str:
        """Address of the bridge's page in the frontend."""
        devices = await self.api.command("config/device_registry/list")
        device = next(device["id"] for device in devices if self.entry_id in device["config_entries"])
        return f"{self.hass.url}/config/devices/device/{device}"


def _certificates(folder: Path) -> tuple[Certificate, str]:
    """Make an authority and a server certificate on the spot, or read those of the kept folder."""
    if not (folder / "server.pem").exists():
        authority = Authority(folder)
        return authority.issue("server"), authority.pem
    cert_file, key_file = folder / "server.pem", folder / "server.key"
    certificate = Certificate(cert_file.read_text(), key_file.read_text(), cert_file, key_file)
    return certificate, (folder / "ca.pem").read_text()


def kept_ports(folder: Path, wanted: Ports) -> Ports:
    """Read the ports of a kept folder, or choose and note them: brokers and Home Assistant are configured for them."""
    note = folder / "ports.json"
    if not note.exists():
        ports = wanted.chosen()
        folder.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(asdict(ports)))
        return ports
    return Ports(**json.loads(note.read_text())).chosen()
