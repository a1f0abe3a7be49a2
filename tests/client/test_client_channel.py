"""How a connection is opened: plain, encrypted, with credentials."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from fake_interpret_server import FakeServer

import interpret_client
from interpret_client import _channel

PEM = b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """The credentials that a channel is opened with: None for plain, else the trusted roots."""
    monkeypatch.setattr(
        grpc, "ssl_channel_credentials", lambda root_certificates: root_certificates
    )

    def open_with(tls: Any) -> Any:
        return _channel.open_channel(
            "host:1",
            tls,
            lambda address, options: ("plain", None),
            lambda address, credentials, options: ("encrypted", credentials),
        )

    return open_with


def test_connection_is_plain_unless_asked_for(opened: Callable[[Any], Any]) -> None:
    assert opened(None) == opened(False) == ("plain", None)


def test_authorities_come_from_the_system_a_file_or_bytes(
    opened: Callable[[Any], Any], tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").write_bytes(PEM)
    assert opened(True) == ("encrypted", None)
    assert opened(PEM) == ("encrypted", PEM)
    assert opened(tmp_path / "ca.pem") == ("encrypted", PEM)
    assert opened(str(tmp_path / "ca.pem")) == ("encrypted", PEM)


def test_ready_made_credentials_are_used_as_they_are(opened: Callable[[Any], Any]) -> None:
    credentials = grpc.ChannelCredentials(None)
    assert opened(credentials) == ("encrypted", credentials)


def test_encrypted_client_does_not_talk_to_a_plain_server(fake: FakeServer) -> None:
    with (
        interpret_client.connect(fake.address, token="secret", tls=True, tries=1) as client,
        pytest.raises(interpret_client.Unavailable, match="no server answers"),
    ):
        client.models()
    assert not fake.metadata
