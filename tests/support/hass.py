"""A real Home Assistant: the `hass` process on loopback, with the frontend and this checkout's integration."""

import asyncio
from datetime import UTC, datetime
import json
from pathlib import Path
import re
import sys
from typing import Final, override

import aiohttp

from .processes import Service, free_port

HOST: Final = "127.0.0.1"
CHECKOUT: Final = Path(__file__).parents[2]
START_TIMEOUT: Final = 60.0
"""Seconds; a first start compiles Home Assistant's own modules."""
STOP_TIMEOUT: Final = 30.0

_CONFIGURATION: Final = """\
# Home Assistant's default integrations come by themselves; nothing here reaches beyond this machine.
homeassistant:
  name: quic_bridge demo
  time_zone: UTC
  latitude: 0
  longitude: 0
  elevation: 0
  unit_system: metric
  country: GB
  language: {language}
  currency: EUR
frontend:
history:
logbook:
logger:
  default: warning
  logs:
    custom_components.quic_bridge: {log_level}
    # Home Assistant's camera and voice integrations complain of programs that the bridge does not need.
    haffmpeg: critical
    homeassistant.components.camera.img_util: critical
"""

_STAND_INS: Final = {"pymicro_vad.py": "class MicroVad: ...\n", "pyspeex_noise.py": "class AudioProcessor: ...\n"}
"""Modules for voice assistants, whose packages need a C++ compiler. Without them Home Assistant can describe no action
(it looks up features in all its base components), and without that its frontend never gets beyond "Loading"."""

_RECORD: Final = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} (?P<level>[A-Z]+) ")


class HomeAssistant(Service):
    """One Home Assistant. Its folder is made at the first start, and the port chosen; both stay over restarts."""

    host = HOST

    def __init__(self, folder: Path, *, port: int = 0, log_level: str = "info", language: str = "en") -> None:
        """Take the configuration folder; `log_level` is that of the integration."""
        super().__init__("hass", folder / "hass.log")
        self.folder = folder
        self.port = port
        self._log_level = log_level
        self._language = language
        self._old_log = self.log

    @property
    def url(self) -> str:
        """Address of the frontend and the API."""
        return f"http://{self.host}:{self.port}"

    def _write_configuration(self) -> None:
        storage = self.folder / ".storage"
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, text in _STAND_INS.items():
            # Found there because the folder is the process's working directory.
            (self.folder / name).write_text(text)
        if storage.exists():
            self.port = json.loads((storage / "http").read_text())["data"]["stable"]["server_port"]
            return
        self.port = self.port or free_port()
        storage.mkdir(parents=True)
        configuration = _CONFIGURATION.format(log_level=self._log_level, language=self._language)
        (self.folder / "configuration.yaml").write_text(configuration)
        (self.folder / "custom_components").symlink_to(CHECKOUT / "custom_components")
        # A host and port given any other way would be on trial, and be taken back after five minutes.
        stable = {
            "server_host": [self.host],
            "server_port": self.port,
            "cors_allowed_origins": ["https://cast.home-assistant.io"],
            "login_attempts_threshold": -1,
            "ip_ban_enabled": True,
            "ssl_profile": "modern",
            "use_x_frame_options": True,
            "created_at": datetime.now(UTC).isoformat(),
            "error": None,
            "error_message": None,
        }
        _write_store(storage, "http", 2, 2, {"stable": stable, "pending": None, "yaml_migration_done": True})
        # These steps of the onboarding would set up integrations that ask the internet for the weather.
        _write_store(storage, "onboarding", 4, 1, {"done": ["core_config", "analytics", "integration"]})

    @override
    async def start(self) -> None:
        """Start it and wait until its web server answers; raises RuntimeError with its log when it does not."""
        self._write_configuration()
        # What is locked is what runs: nothing is downloaded at the start.
        command = [sys.executable, "-m", "homeassistant", "--config", str(self.folder), "--skip-pip", "--log-no-color"]
        await self.spawn(command, cwd=self.folder)
        try:
            async with asyncio.timeout(START_TIMEOUT), aiohttp.ClientSession() as session:
                while self.running:
                    if await self._answers(session):
                        return
                    await asyncio.sleep(0.1)
        except TimeoutError:
            await self.stop()
        raise RuntimeError(f"Home Assistant did not start:\n{self.log}")

    @override
    async def stop(self) -> None:
        """Ask it to end (SIGTERM) and wait; it is killed when it takes longer than `STOP_TIMEOUT`."""
        if self.running and self._process is not None:
            self._process.terminate()
            try:
                async with asyncio.timeout(STOP_TIMEOUT):
                    await self._process.wait()
            except TimeoutError:
                await self.kill()

    @property
    def exit_code(self) -> int | None:
        """How its last run ended: 0 in good order, negative: the signal that killed it; None while it runs."""
        return None if self._process is None else self._process.returncode

    async def _answers(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(f"{self.url}/manifest.json") as response:
                return response.ok
        except aiohttp.ClientError:
            return False

    def complaints(self) -> list[str]:
        """Log records that speak of the integration as faulty: errors, tracebacks, and calls that block the loop."""
        found = []
        for record in self.records():
            match = _RECORD.match(record)
            level = match["level"] if match else "ERROR"
            # Paths to this folder or the checkout may hold the word too.
            text = record.replace(str(self.folder), "").replace(str(CHECKOUT), "")
            if re.search(r"\bquic_bridge\b", text) is None:
                continue
            if level in {"ERROR", "CRITICAL"} or "Traceback (most recent" in text or "Detected " in text:
                found.append(record)
        return found

    def records(self) -> list[str]:
        """The log, cut into records: a line with a time, and all the lines that follow without one.

        What the folder's log held before belongs to somebody else's run and is left out.
        """
        records: list[str] = []
        for line in self.log.removeprefix(self._old_log).splitlines():
            if records and not _RECORD.match(line):
                records[-1] += f"\n{line}"
            else:
                records.append(line)
        return records


def _write_store(storage: Path, key: str, version: int, minor_version: int, data: object) -> None:
    content = {"version": version, "minor_version": minor_version, "key": key, "data": data}
    (storage / key).write_text(json.dumps(content))
