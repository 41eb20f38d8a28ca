"""The TLS section of the brokers' forms: certificates, keys and pins, as they are typed and as they are stored.

A certificate or key is PEM text, or the path of a file that is read at each connect. A key, and its password, never
go back to the browser: `secrets` holds them for the form, which shows dots in their place.
"""

from collections.abc import Mapping
import re
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import Encoding
from homeassistant.components.file_upload import process_uploaded_file
from homeassistant.core import HomeAssistant
from homeassistant.helpers.selector import (
    BooleanSelector,
    FileSelector,
    FileSelectorConfig,
    TextSelector,
    TextSelectorConfig,
    TextSelectorType,
)
import probatio

from .bridge.certificates import MAX_FILE, parse_certificates, parse_pin
from .brokers import is_file
from .const import (
    CONF_CA,
    CONF_CA_FILE,
    CONF_CERTIFICATE,
    CONF_CERTIFICATE_FILE,
    CONF_PINS,
    CONF_PRIVATE_KEY,
    CONF_PRIVATE_KEY_FILE,
    CONF_PRIVATE_KEY_PASSWORD,
    CONF_SERVER_NAME,
    CONF_USE_TLS,
    CONF_VERIFY,
    SECTION_TLS,
)
from .form_error import FormError

KEPT: Final = "\N{BULLET}" * 8
"""Stands in the form for a key that is stored."""

_KEY: Final = re.compile(r"-----BEGIN (?P<kind>[A-Z ]*PRIVATE KEY)-----.*?-----END (?P=kind)-----", re.DOTALL)
_SECRETS: Final = (CONF_PRIVATE_KEY, CONF_PRIVATE_KEY_PASSWORD)

_LINES: Final = TextSelector(TextSelectorConfig(multiline=True))
_CERTIFICATE_FILE: Final = FileSelector(FileSelectorConfig(accept=".pem,.crt,.cer,.der"))

TLS_FIELDS: Final[dict[probatio.Marker, object]] = {
    probatio.Optional(CONF_CA): _LINES,
    probatio.Optional(CONF_CA_FILE): _CERTIFICATE_FILE,
    probatio.Optional(CONF_SERVER_NAME): TextSelector(),
    probatio.Required(CONF_VERIFY, default=True): BooleanSelector(),
    probatio.Optional(CONF_PINS): TextSelector(TextSelectorConfig(multiple=True)),
    probatio.Optional(CONF_CERTIFICATE): _LINES,
    probatio.Optional(CONF_CERTIFICATE_FILE): _CERTIFICATE_FILE,
    probatio.Optional(CONF_PRIVATE_KEY): _LINES,
    probatio.Optional(CONF_PRIVATE_KEY_FILE): FileSelector(FileSelectorConfig(accept=".pem,.key")),
    probatio.Optional(CONF_PRIVATE_KEY_PASSWORD): TextSelector(
        TextSelectorConfig(type=TextSelectorType.PASSWORD, autocomplete="off")
    ),
}


def stored_secrets(stored: Mapping[str, Any]) -> dict[str, str]:
    """Return what the form of a stored broker holds back."""
    return {key: stored[key] for key in _SECRETS if stored.get(key)}


def tls_form(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the section shows of a stored broker."""
    shown = {
        key: stored.get(key)
        for key in (CONF_USE_TLS, CONF_CA, CONF_SERVER_NAME, CONF_VERIFY, CONF_PINS, CONF_CERTIFICATE)
    }
    if key := stored.get(CONF_PRIVATE_KEY):
        shown[CONF_PRIVATE_KEY] = key if is_file(key) else KEPT
    return {key: value for key, value in shown.items() if value is not None}


async def async_tls_data(hass: HomeAssistant, tls: dict[str, Any], secrets: dict[str, str]) -> dict[str, Any]:
    """Return what is stored for a TLS section, only what is not empty of what entries once had not. Raises FormError.

    `tls` is amended for when the form is shown again because of another error: an uploaded file is there only once,
    so its text takes the place of the pasted one; what is secret goes to `secrets`.
    """
    ca, _ = await _async_read(hass, tls, CONF_CA, CONF_CA_FILE, "ca_invalid")
    certificate, enclosed = await _async_read(hass, tls, CONF_CERTIFICATE, CONF_CERTIFICATE_FILE, "certificate_invalid")
    await _async_take_key(hass, tls, secrets, enclosed, has_certificate=certificate is not None)
    optional = {
        CONF_CERTIFICATE: certificate,
        CONF_PRIVATE_KEY: secrets.get(CONF_PRIVATE_KEY),
        CONF_PRIVATE_KEY_PASSWORD: secrets.get(CONF_PRIVATE_KEY_PASSWORD),
        CONF_PINS: _pins(tls),
    }
    return {
        CONF_CA: ca,
        CONF_SERVER_NAME: tls.get(CONF_SERVER_NAME, "").strip() or None,
        CONF_VERIFY: tls[CONF_VERIFY],
        **{key: value for key, value in optional.items() if value},
    }


async def _async_read(
    hass: HomeAssistant, tls: dict[str, Any], text: str, file: str, error_key: str
) -> tuple[str | None, str | None]:
    """Return certificates as PEM text, or the path of their file; and the key that was among them."""
    upload = tls.pop(file, None)
    pasted = tls.get(text, "").strip()
    if upload is None and (not pasted or is_file(pasted)):
        return pasted or None, None  # what the path leads to is read when the broker is tried
    try:
        pem, key = await hass.async_add_executor_job(_certificates, hass, upload, pasted)
    except ValueError as error:
        raise FormError(SECTION_TLS, error_key, {"detail": str(error)}) from error
    tls[text] = pem
    return pem, key


def _certificates(hass: HomeAssistant, upload: str | None, pasted: str) -> tuple[str, str | None]:
    """Read certificates, PEM or DER, and write them as PEM alone; return a private key among them as well."""
    content = pasted.encode() if upload is None else _uploaded(hass, upload)
    pem = "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in parse_certificates(content))
    key = _KEY.search(content.decode(errors="replace"))
    return pem, f"{key[0]}\n" if key else None


def _uploaded(hass: HomeAssistant, upload: str) -> bytes:
    """Return the content of an uploaded file; ValueError if it is not there any more."""
    with process_uploaded_file(hass, upload) as path, path.open("rb") as file:
        return file.read(MAX_FILE)


async def _async_take_key(
    hass: HomeAssistant, tls: dict[str, Any], secrets: dict[str, str], enclosed: str | None, *, has_certificate: bool
) -> None:
    """Move the key and its password from the form to `secrets`; dots keep what is there, nothing removes it."""
    upload = tls.pop(CONF_PRIVATE_KEY_FILE, None)
    typed = tls.pop(CONF_PRIVATE_KEY, "").strip()
    password = tls.pop(CONF_PRIVATE_KEY_PASSWORD, "")
    if upload is not None:
        try:
            typed = (await hass.async_add_executor_job(_uploaded, hass, upload)).decode(errors="replace")
        except ValueError as error:
            raise FormError(SECTION_TLS, "key_invalid", {"detail": str(error)}) from error
    if enclosed is not None and typed in {"", KEPT}:
        typed = enclosed
    if typed == KEPT:
        typed = secrets.get(CONF_PRIVATE_KEY, "") if has_certificate else ""
    if typed and not is_file(typed):
        key = _KEY.search(typed)
        if key is None:
            raise FormError(SECTION_TLS, "key_invalid", {"detail": "-----BEGIN PRIVATE KEY-----"})
        typed = f"{key[0]}\n"
    if typed != secrets.get(CONF_PRIVATE_KEY):
        secrets.clear()  # the password of another key is of no use
    if typed:
        secrets[CONF_PRIVATE_KEY] = typed
        tls[CONF_PRIVATE_KEY] = typed if is_file(typed) else KEPT
        if password:
            secrets[CONF_PRIVATE_KEY_PASSWORD] = password


def _pins(tls: Mapping[str, Any]) -> list[str]:
    pins = []
    for text in tls.get(CONF_PINS, ()):
        if not text.strip():
            continue
        if (pin := parse_pin(text)) is None:
            raise FormError(SECTION_TLS, "pin_invalid", {"pin": text.strip()})
        pins.append(pin)
    return pins
