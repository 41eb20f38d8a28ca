"""Everything behind the browser."""

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final, Self

from ..support.certs import Certificates
from ..support.front_process import FrontProcess
from ..support.hass import HOST, HomeAssistant
from ..support.hass_api import HomeAssistantApi
from ..support.mosquitto import Mosquitto, MosquittoOptions

USER: Final = "demo"
PASSWORD: Final = "demo"
REMOTE_USER: Final = "home"
REMOTE_PASSWORD: Final = "correct horse"
START_TIMEOUT: Final = 60.0


class World:
    """Two brokers, QUIC in front of the remote one, and a new Home Assistant with the MQTT integration.

    The bridge is not set up: that is what the browser does.
    """

    front: FrontProcess
    api: HomeAssistantApi

    def __init__(self, folder: Path, certs: Certificates, *, language: str) -> None:
        """Take an empty folder; `language` is Home Assistant's."""
        self.certs = certs
        self.language = language
        options = MosquittoOptions(persistence=True)
        self.local = Mosquitto(folder / "local", options, name="local")
        options = MosquittoOptions(persistence=True, users={REMOTE_USER: REMOTE_PASSWORD})
        self.remote = Mosquitto(folder / "remote", options, name="remote")
        self.hass = HomeAssistant(folder / "hass", language=language)
        self._folder = folder
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.local)
            await stack.enter_async_context(self.remote)
            front = FrontProcess(self._folder, self.remote.address, self.certs.server)
            self.front = await stack.enter_async_context(front)
            await stack.enter_async_context(self.hass)
            # Home Assistant waits for its clients when it stops: the API's connections go first.
            self.api = await stack.enter_async_context(HomeAssistantApi(self.hass.url))
            await self.api.onboard("Demo", USER, PASSWORD, self.language)
            await self.api.wait_running(START_TIMEOUT)
            await self.api.run_flow("mqtt", {"broker": HOST, "port": self.local.port})
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
