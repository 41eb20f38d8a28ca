"""The steps that show a certificate which is not trusted, and let a person pin its key."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
import logging
from typing import Any

from homeassistant.config_entries import ConfigFlow, ConfigFlowResult

from .bridge.check import show_certificate
from .bridge.errors import BridgeError
from .bridge.status import CertificateStatus
from .const import CONF_PINS, CONF_VERIFY, SECTION_TLS
from .form_error import FormError
from .route_data import code

_LOGGER = logging.getLogger(__name__)

type Step = Callable[[dict[str, Any]], Coroutine[Any, Any, ConfigFlowResult]]


@dataclass(frozen=True, slots=True)
class _Refused:
    """A form that was filled in, and the certificate for which the broker was not tried any further."""

    form: ConfigFlowResult
    """The form with its error, to go back to."""
    step: Step
    user_input: dict[str, Any]
    certificate: CertificateStatus
    detail: str


class TrustFlow(ConfigFlow):
    """Lets a person look at a broker's certificate, and go by its key from then on."""

    def __init__(self) -> None:
        """Begin without a certificate."""
        super().__init__()
        self._refused: _Refused | None = None

    async def _async_show_certificate(
        self, form: ConfigFlowResult, error: FormError, step: Step, user_input: dict[str, Any]
    ) -> ConfigFlowResult:
        """Show the certificate that was refused, if that is what was wrong and it can be had; else the form."""
        if error.untrusted is None:
            return form
        try:
            certificate = await show_certificate(error.untrusted)
        except BridgeError as failure:
            _LOGGER.debug("The certificate cannot be shown: %s", failure)
            return form
        self._refused = _Refused(form, step, user_input, certificate, error.placeholders["detail"])
        return await self.async_step_certificate()

    async def async_step_certificate(self, _: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Show it; there is no way on without a choice."""
        refused = self._require()
        certificate = refused.certificate
        return self.async_show_menu(
            step_id="certificate",
            menu_options=["back", "trust"],
            description_placeholders={
                "detail": refused.detail,
                "subject": code(certificate.subject),
                "issuer": code(certificate.issuer),
                "names": code(certificate.names) if certificate.names else "–",  # noqa: RUF001
                "fingerprint": code(certificate.fingerprint),
                "pin": code(certificate.pin),
                "valid_from": f"{certificate.valid_from:%Y-%m-%d}",
                "valid_until": f"{certificate.valid_until:%Y-%m-%d}",
            },
        )

    async def async_step_back(self, _: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Go back to the form."""
        return self._require().form

    async def async_step_trust(self, _: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Pin the key in place of the check by authorities, and try again."""
        refused = self._require()
        tls = {**refused.user_input[SECTION_TLS], CONF_VERIFY: False, CONF_PINS: [refused.certificate.pin]}
        return await refused.step({**refused.user_input, SECTION_TLS: tls})

    def _require(self) -> _Refused:
        assert self._refused is not None  # noqa: S101 - the steps are reached through the menu alone
        return self._refused
