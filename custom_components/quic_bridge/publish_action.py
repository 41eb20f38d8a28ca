"""The action that publishes a message to the remote broker: what it takes, and its errors in words."""

import base64
import binascii
from datetime import timedelta
import json
from typing import Any, Final

from homeassistant.core import ServiceCall, ServiceResponse
from homeassistant.exceptions import HomeAssistantError, ServiceValidationError
from homeassistant.helpers import config_validation as cv
import probatio

from .bridge.publisher import Publication, PublishError, PublishFault
from .const import DOMAIN
from .coordinator import QuicBridgeConfigEntry

ATTR_TOPIC: Final = "topic"
ATTR_PAYLOAD: Final = "payload"
ATTR_ENCODING: Final = "payload_encoding"
ATTR_QOS: Final = "qos"
ATTR_RETAIN: Final = "retain"
ATTR_PAYLOAD_FORMAT: Final = "payload_format_indicator"
ATTR_MESSAGE_EXPIRY: Final = "message_expiry_interval"
ATTR_CONTENT_TYPE: Final = "content_type"
ATTR_RESPONSE_TOPIC: Final = "response_topic"
ATTR_CORRELATION_DATA: Final = "correlation_data"
ATTR_USER_PROPERTIES: Final = "user_properties"

_MOST_SHOWN: Final = 200
"""Characters of a topic that errors tell of."""
_TEXT: Final = "text"
_BASE64: Final = "base64"

PUBLISH_FIELDS: Final = {
    probatio.Required(ATTR_TOPIC): cv.string,
    # Templates give numbers, lists and dictionaries for what looks like them.
    probatio.Optional(ATTR_PAYLOAD, default=""): probatio.Any(None, bytes, str, int, float, bool, list, dict),
    probatio.Optional(ATTR_ENCODING, default=_TEXT): probatio.In((_TEXT, _BASE64)),
    probatio.Optional(ATTR_QOS, default=0): probatio.All(probatio.Coerce(int), probatio.In((0, 1, 2))),
    probatio.Optional(ATTR_RETAIN, default=False): cv.boolean,
    probatio.Optional(ATTR_PAYLOAD_FORMAT, default=False): cv.boolean,
    probatio.Optional(ATTR_MESSAGE_EXPIRY): cv.positive_time_period,
    probatio.Optional(ATTR_CONTENT_TYPE): cv.string,
    probatio.Optional(ATTR_RESPONSE_TOPIC): cv.string,
    probatio.Optional(ATTR_CORRELATION_DATA): cv.string,
    probatio.Optional(ATTR_USER_PROPERTIES): probatio.Schema({cv.string: probatio.Any([cv.string], cv.string)}),
}

_CALLERS_FAULT: Final = frozenset(
    {
        PublishFault.INVALID_TOPIC,
        PublishFault.INVALID_PROPERTY,
        PublishFault.NO_PROPERTIES,
        PublishFault.QOS,
        PublishFault.RETAIN,
        PublishFault.TOO_LARGE,
    }
)
"""What another call would not do better unless something in it is changed."""


async def async_publish(entry: QuicBridgeConfigEntry, call: ServiceCall) -> ServiceResponse:
    """Publish to the remote broker and return what it said; HomeAssistantError if it does not have the message."""
    coordinator = entry.runtime_data
    coordinator.async_require_running()
    message = _publication(call.data)
    try:
        receipt = await coordinator.bridge.publish(message)
    except PublishError as error:
        kind = ServiceValidationError if error.fault in _CALLERS_FAULT else HomeAssistantError
        raise kind(
            translation_domain=DOMAIN,
            translation_key=f"publish_{error.fault}",
            translation_placeholders={
                "name": entry.title,
                "topic": message.topic[:_MOST_SHOWN],
                "detail": error.text[:_MOST_SHOWN],
            },
        ) from error
    return {
        "qos": message.qos,
        "reason_code": receipt.reason_code,
        "reason": receipt.reason,
        "duration_ms": round(receipt.seconds * 1000, 1),
    }


def _publication(data: dict[str, Any]) -> Publication:
    """Return the message that is meant; ServiceValidationError."""
    expiry: timedelta | None = data.get(ATTR_MESSAGE_EXPIRY)
    correlation: str | None = data.get(ATTR_CORRELATION_DATA)
    try:
        payload = _payload(data[ATTR_PAYLOAD], data[ATTR_ENCODING])
        correlation_data = None if correlation is None else correlation.encode()
    except (TypeError, UnicodeEncodeError) as error:
        # What templates make may have keys, values or halves of characters that no JSON and no UTF-8 has.
        raise ServiceValidationError(
            translation_domain=DOMAIN,
            translation_key="publish_invalid_payload",
            translation_placeholders={"detail": str(error)},
        ) from error
    user_properties = [
        (name, value)
        for name, values in data.get(ATTR_USER_PROPERTIES, {}).items()
        for value in (values if isinstance(values, list) else [values])
    ]
    return Publication(
        topic=data[ATTR_TOPIC],
        payload=payload,
        qos=data[ATTR_QOS],
        retain=data[ATTR_RETAIN],
        payload_is_text=data[ATTR_PAYLOAD_FORMAT],
        message_expiry=None if expiry is None else round(expiry.total_seconds()),
        content_type=data.get(ATTR_CONTENT_TYPE),
        response_topic=data.get(ATTR_RESPONSE_TOPIC),
        correlation_data=correlation_data,
        user_properties=tuple(user_properties),
    )


def _payload(value: object, encoding: str) -> bytes:
    """Return the bytes of a payload as a script gives it, text or anything that a template makes."""
    if isinstance(value, bytes):
        content = value
    elif value is None:
        content = b""
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        content = text.encode()
    if encoding == _TEXT:
        return content
    try:
        return base64.b64decode(b"".join(content.split()), validate=True)
    except binascii.Error as error:
        raise ServiceValidationError(
            translation_domain=DOMAIN,
            translation_key="publish_invalid_base64",
            translation_placeholders={"detail": str(error)},
        ) from error
