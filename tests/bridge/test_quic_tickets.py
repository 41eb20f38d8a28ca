"""The store of session tickets: what it keeps, for whom, for how long, and in what kind of file."""

import asyncio
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
import functools
import json
import logging
from pathlib import Path

from aioquic.tls import CipherSuite, SessionTicket
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
import pytest

from custom_components.quic_bridge.bridge.bridge import remove_files
from custom_components.quic_bridge.bridge.config import BrokerConfig, TlsConfig
from custom_components.quic_bridge.bridge.transport import quic_tickets
from custom_components.quic_bridge.bridge.transport.quic_tickets import (
    MAX_TICKET_SIZE,
    MAX_TICKETS,
    PER_BROKER,
    TRUST,
    Ticket,
    TicketStore,
    broker_key,
)

from ..support.processes import wait_until

NOW = datetime.now(UTC)


@functools.cache
def certificate(days: float = 300) -> x509.Certificate:
    """Make a certificate that is valid for so long."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    return x509.CertificateBuilder(
        name, name, key.public_key(), 1, NOW - timedelta(days=1), NOW + timedelta(days=days)
    ).sign(key, hashes.SHA256())


def ticket(name: str = "one", **changes: object) -> Ticket:
    """Make a ticket that is valid for an hour."""
    session = SessionTicket(
        age_add=17,
        cipher_suite=CipherSuite.AES_128_GCM_SHA256,
        not_valid_before=NOW,
        not_valid_after=NOW + timedelta(hours=1),
        resumption_secret=b"\0secret\xff",
        server_name="broker.example",
        ticket=name.encode(),
        max_early_data_size=0xFFFFFFFF,
        other_extensions=[(57, b"\x01\x02")],
    )
    session = replace(session, **changes)  # type: ignore[arg-type]
    return Ticket(session, NOW + timedelta(hours=2), certificate())


def names(store: TicketStore, key: str) -> list[str]:
    """Take all tickets for a broker."""
    found = []
    while (taken := store.take(key)) is not None:
        found.append(taken.session.ticket.decode())
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "entry.tickets"


def is_private(path: Path) -> bool:
    """Tell whether a file is for nobody else, and alone in its folder; then let everybody read it, as in a backup."""
    private = path.stat().st_mode & 0o777 == 0o600 and [*path.parent.iterdir()] == [path]
    path.chmod(0o644)
    return private


def spoil(path: Path, damage: Callable[[str], str]) -> None:
    """Damage a file."""
    text = path.read_text()
    assert damage(text) != text
    path.write_text(damage(text))


def opened(path: Path) -> TicketStore:
    """Open a store as a bridge does."""
    store = TicketStore(path)
    found = store.read()
    assert found is not None
    store.loaded(found)
    assert store.read() is None
    return store


async def test_each_is_used_once_the_newest_first(path: Path) -> None:
    store = opened(path)
    store.give("broker", ticket("old"))
    store.give("broker", ticket("new"))
    store.give("other", ticket("another broker's"))
    assert names(store, "broker") == ["new", "old"]
    assert names(store, "broker") == []
    assert names(store, "other") == ["another broker's"]
    await store.close()


async def test_few_are_kept(path: Path) -> None:
    store = opened(path)
    for number in range(5):
        store.give("broker", ticket(str(number)))
    assert names(store, "broker") == ["4", "3"][:PER_BROKER]
    for number in range(MAX_TICKETS + 5):
        store.give(f"broker {number}", ticket())
    assert names(store, "broker 0") == []
    assert sum(bool(names(store, f"broker {number}")) for number in range(MAX_TICKETS + 5)) == MAX_TICKETS
    store.give("broker", ticket("x" * (MAX_TICKET_SIZE + 1)))
    assert store.take("broker") is None
    await store.close()


async def test_they_survive_a_restart_and_are_nobody_elses(path: Path) -> None:
    store = opened(path)
    store.give("broker", ticket())
    await store.close()
    assert is_private(path)
    store = opened(path)
    assert store.take("broker") == ticket()
    await store.close()
    assert is_private(path)
    # What was used is not there any more.
    assert names(opened(path), "broker") == []
    for _ in range(2):
        await remove_files(path, path.parent / "logs")
        assert not await asyncio.to_thread(path.exists)


async def test_the_file_is_written_soon(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quic_tickets, "SAVE_DELAY", 0.01)
    store = opened(path)
    store.give("broker", ticket("one"))
    await wait_until(path.exists)
    store.give("broker", ticket("two"))
    await wait_until(lambda: b"dHdv" in path.read_bytes())
    await store.close()


async def test_an_expired_ticket_is_not_used(path: Path) -> None:
    store = opened(path)
    store.give("broker", ticket("good"))
    store.give("broker", ticket("expired", not_valid_after=NOW - timedelta(seconds=1)))
    assert names(store, "broker") == ["good"]
    store.give("broker", replace(ticket(), trusted_until=NOW - timedelta(seconds=1)))
    assert store.take("broker") is None
    await store.close()


def test_trust_ends_after_a_day_or_with_the_certificate() -> None:
    session = ticket(not_valid_after=NOW + timedelta(days=7)).session
    for days, until in ((300, TRUST), (0.125, timedelta(hours=3))):
        found = Ticket.checked_now(session, certificate(days))
        assert abs(found.trusted_until - NOW - until) < timedelta(minutes=30)


async def test_what_did_no_good_is_forgotten(path: Path) -> None:
    store = opened(path)
    store.give("broker", ticket())
    store.give("other", ticket())
    store.forget("broker")
    store.forget("nobody")
    assert names(store, "broker") == []
    assert names(store, "other") == ["one"]
    await store.close()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda _: "", id="empty"),
        pytest.param(lambda _: "{", id="no-json"),
        pytest.param(lambda _: "[]", id="another-type"),
        pytest.param(lambda _: '{"tickets": [{}]}', id="no-fields"),
        pytest.param(lambda text: text.replace("secret", "secrets"), id="no-secret"),
        pytest.param(lambda text: text.replace('"age_add": 17', '"age_add": "17"'), id="no-number"),
        pytest.param(lambda text: text.replace('"b25l"', '"b25"'), id="no-base64"),
        pytest.param(lambda text: text.replace("+00:00", ""), id="no-time-zone"),
        pytest.param(lambda text: text.replace('"certificate": "M', '"certificate": "N'), id="no-certificate"),
        pytest.param(lambda text: text.replace('"cipher_suite": 4865', '"cipher_suite": 1'), id="no-cipher"),
        pytest.param(lambda text: text.replace("[[57", "[[null"), id="no-extension"),
        pytest.param(lambda text: text.replace("[[57", '"').replace("]]", '"'), id="no-extensions"),
    ],
)
async def test_a_damaged_file_costs_full_handshakes_only(
    path: Path, damage: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(path)
    store.give("broker", ticket())
    await store.close()
    spoil(path, damage)
    store = opened(path)
    assert store.take("broker") is None
    assert "Session tickets cannot be read" in caplog.text
    store.give("broker", ticket("new"))
    await store.close()
    store = opened(path)
    assert names(store, "broker") == ["new"]
    await store.close()


async def test_a_disk_that_fails_is_told_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.write_text("a file where a folder should be")
    store = TicketStore(path)
    store.loaded([])
    for _ in range(3):
        store.give("broker", ticket())
        await store.close()
    assert store.take("broker") is not None, "in memory it works"
    await store.close()
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


def test_everything_that_the_handshake_depended_on_is_in_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever of it changes, a ticket of before is not used: nobody rides in on an older trust."""
    bundle = tmp_path / "authorities.pem"
    bundle.write_text("x")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    tls = TlsConfig()
    config = BrokerConfig(host="broker.example", port=14567, client_id="bridge", tls=tls)
    key = broker_key(config)
    assert broker_key(replace(config, tls=None)) == key
    assert broker_key(replace(config, client_id="another", username="x", password="y")) == key  # that is MQTT's
    changed = {key, broker_key(replace(config, host="other.example")), broker_key(replace(config, port=1))}
    for number, field in enumerate(fields(TlsConfig)):
        value = getattr(tls, field.name)
        other: object = not value if isinstance(value, bool) else ("x",) if isinstance(value, tuple) else "x"
        changed.add(broker_key(replace(config, tls=replace(tls, **{field.name: other}))))  # type: ignore[arg-type]
        assert len(changed) == 4 + number, f"{field.name} does not count"
    bundle.write_text("other authorities")
    assert broker_key(config) not in changed
    bundle.unlink()
    assert broker_key(config)
    # It tells nothing of what is in it.
    assert len(key) == len(json.dumps(key)) - 2 == 64
