"""Home Assistant's HTTP and WebSocket API, as its frontend uses it."""

import asyncio
from collections.abc import Mapping
import json
import time
from typing import Any, Final, Self

import aiohttp

type Json = Any
"""What came out of JSON; who reads it knows its shape."""

TIMEOUT: Final = 30.0
_MESSAGE_BYTES: Final = 64 * 1024 * 1024


class ApiError(Exception):
    """Home Assistant refused a request."""


class FlowError(ApiError):
    """A configuration flow did not come to its end."""


class HomeAssistantApi:
    """A user of Home Assistant, logged in."""

    def __init__(self, url: str) -> None:
        """Take the address, `http://HOST:PORT`."""
        self.url = url
        self._client_id = f"{url}/"
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT))
        self._websocket: aiohttp.ClientWebSocketResponse | None = None
        self._message_id = 0
        self._access_token = ""
        self._refresh_token = ""
        self._token_expires = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        if self._websocket is not None:
            await self._websocket.close()
        await self._session.close()

    # Users

    async def onboard(self, name: str, user: str, password: str, language: str = "en") -> None:
        """Create the owner at the first start, log in; at later starts log in. Areas are named in the language."""
        owner = {"name": name, "username": user, "password": password, "language": language}
        body = {"client_id": self._client_id, **owner}
        async with self._session.post(f"{self.url}/api/onboarding/users", json=body) as response:
            # Once everything is done, Home Assistant has no such address any more.
            code = None if response.status in {403, 404} else (await _checked(response))["auth_code"]
        await self._take_tokens(grant_type="authorization_code", code=code or await self._log_in(user, password))

    async def _log_in(self, user: str, password: str) -> str:
        flow = await self._post_open(
            "/auth/login_flow",
            {"client_id": self._client_id, "handler": ["homeassistant", None], "redirect_uri": self._client_id},
        )
        answer = {"client_id": self._client_id, "username": user, "password": password}
        result = await self._post_open(f"/auth/login_flow/{flow['flow_id']}", answer)
        if result["type"] != "create_entry":
            raise ApiError(f"Home Assistant does not let {user} in: {result.get('errors')}")
        return str(result["result"])

    async def _post_open(self, path: str, body: Mapping[str, Json]) -> Json:
        async with self._session.post(f"{self.url}{path}", json=body) as response:
            return await _checked(response)

    async def _take_tokens(self, **grant: str) -> None:
        async with self._session.post(f"{self.url}/auth/token", data={"client_id": self._client_id, **grant}) as reply:
            tokens = await _checked(reply)
        self._access_token = tokens["access_token"]
        self._refresh_token = tokens.get("refresh_token", self._refresh_token)
        self._token_expires = time.monotonic() + tokens["expires_in"]

    async def _headers(self) -> dict[str, str]:
        if time.monotonic() > self._token_expires - 60:
            await self._take_tokens(grant_type="refresh_token", refresh_token=self._refresh_token)
        return {"Authorization": f"Bearer {self._access_token}"}

    # Requests

    async def get(self, path: str) -> Json:
        """Read a REST resource, `/api/...`."""
        async with self._session.get(f"{self.url}{path}", headers=await self._headers()) as response:
            return await _checked(response)

    async def post(self, path: str, body: Mapping[str, Json]) -> Json:
        """Write to a REST resource."""
        async with self._session.post(f"{self.url}{path}", json=body, headers=await self._headers()) as response:
            return await _checked(response)

    async def command(self, kind: str, **fields: Json) -> Json:
        """Run a WebSocket command, one at a time, and return its result."""
        if self._websocket is None or self._websocket.closed:
            await self._open_websocket()
        websocket = self._websocket
        if websocket is None:
            raise ApiError("no WebSocket")
        self._message_id += 1
        await websocket.send_json({"id": self._message_id, "type": kind, **fields})
        async with asyncio.timeout(TIMEOUT):
            reply = await websocket.receive_json()
        if not reply["success"]:
            raise ApiError(f"{kind}: {reply['error']['message']}")
        return reply["result"]

    async def _open_websocket(self) -> None:
        await self._headers()
        websocket = await self._session.ws_connect(f"{self.url}/api/websocket", max_msg_size=_MESSAGE_BYTES)
        async with asyncio.timeout(TIMEOUT):
            await websocket.receive_json()
            await websocket.send_json({"type": "auth", "access_token": self._access_token})
            reply = await websocket.receive_json()
        if reply["type"] != "auth_ok":
            raise ApiError(f"WebSocket: {reply['message']}")
        self._websocket, self._message_id = websocket, 0

    async def call(self, domain: str, service: str, **data: Json) -> None:
        """Perform an action."""
        await self.post(f"/api/services/{domain}/{service}", data)

    # What there is

    async def wait_running(self, timeout: float = TIMEOUT) -> None:  # noqa: ASYNC109
        """Wait until Home Assistant has finished its start; raises ApiError when that ended in recovery mode."""
        async with asyncio.timeout(timeout):
            while True:
                config = await self.get("/api/config")
                if config["recovery_mode"]:
                    raise ApiError("Home Assistant is in recovery mode: see its log")
                if config["state"] == "RUNNING":
                    return
                await asyncio.sleep(0.1)

    async def entry(self, entry_id: str) -> Json:
        """Read a config entry: `state`, `disabled_by`, `title`, ..."""
        return (await self.command("config_entries/get_single", entry_id=entry_id))["config_entry"]

    async def entry_of(self, domain: str) -> str | None:
        """Return the id of the domain's first entry."""
        entries = await self.get(f"/api/config/config_entries/entry?domain={domain}")
        return str(entries[0]["entry_id"]) if entries else None

    async def set_entry_enabled(self, entry_id: str, *, enabled: bool) -> None:
        """Enable or disable a config entry, as the button in the frontend does."""
        result = await self.command(
            "config_entries/disable", entry_id=entry_id, disabled_by=None if enabled else "user"
        )
        if result["require_restart"]:
            raise ApiError("the entry was not unloaded: Home Assistant wants a restart")

    async def entities(self, entry_id: str) -> dict[str, str]:
        """Map the translation keys of an entry's enabled entities to their ids."""
        registry = await self.command("config/entity_registry/list")
        return {
            entity["translation_key"]: entity["entity_id"]
            for entity in registry
            if entity["config_entry_id"] == entry_id and entity["disabled_by"] is None
        }

    async def states(self) -> dict[str, str]:
        """Map all entity ids to their states."""
        return {state["entity_id"]: state["state"] for state in await self.get("/api/states")}

    # Flows

    async def run_flow(self, handler: str, answers: Mapping[str, Json]) -> str:
        """Add an integration through its own config flow and return the entry's id.

        `answers` holds the fields of all steps by name, and for a menu `menu:STEP`; what is not in it is left as the
        frontend shows it at first. Raises FlowError when the flow aborts, shows an error, or needs more than that.
        """
        result = await self.post("/api/config/config_entries/flow", {"handler": handler})
        while True:
            path = f"/api/config/config_entries/flow/{result['flow_id']}"
            match result["type"]:
                case "create_entry":
                    return str(result["result"]["entry_id"])
                case "form":
                    if result["errors"]:
                        raise FlowError(f"{handler}, step {result['step_id']}: {_reason(result)}")
                    result = await self.post(path, fill_form(result["data_schema"], answers))
                case "menu":
                    result = await self.post(path, {"next_step_id": answers[f"menu:{result['step_id']}"]})
                case "progress" | "progress_done":
                    await asyncio.sleep(0.1)
                    result = await self.get(path)
                case kind:
                    raise FlowError(f"{handler}: {kind}, {_reason(result)}")


def _reason(result: Json) -> str:
    detail = result.get("errors") or result.get("reason")
    placeholders = result.get("description_placeholders")
    return f"{detail} {placeholders}" if placeholders else str(detail)


def fill_form(schema: list[Json], answers: Mapping[str, Json]) -> dict[str, Json]:
    """Fill a form as a person does who types `answers` and leaves the rest; raises FlowError if that is not enough."""
    values: dict[str, Json] = {}
    for field in schema:
        name = field["name"]
        if field.get("type") == "expandable":
            values[name] = fill_form(field["schema"], answers)
        elif name in answers:
            values[name] = answers[name]
        elif (value := _initial(field)) is not None:
            values[name] = value
        elif field.get("required"):
            raise FlowError(f"the form wants {name}")
    return values


def _initial(field: Json) -> Json:
    """Return what the frontend puts into a field before anybody types."""
    suggested = (field.get("description") or {}).get("suggested_value")
    selector = field.get("selector", {})
    if suggested is not None or "default" in field:
        return field["default"] if suggested is None else suggested
    if field.get("required") and "boolean" in selector:
        return False
    if field.get("required") and "select" in selector:
        option = selector["select"]["options"][0]
        return option["value"] if isinstance(option, dict) else option
    return None


async def _checked(response: aiohttp.ClientResponse) -> Json:
    text = await response.text()
    if not response.ok:
        raise ApiError(f"{response.method} {response.url.path}: {response.status} {text[:500]}")
    return json.loads(text) if text else None
