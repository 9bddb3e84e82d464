"""The certificate that the daemon shows: read, refused, and read again when it changes."""

import asyncio
import ssl
import subprocess

import pytest

from streamdet.config import Security
from streamdet.errors import ConfigError, MissingError
from streamdet.tls import Certificate, client_context
from tests.certificates import make, needs_openssl

pytestmark = needs_openssl


async def shown_by(certificate: Certificate) -> bytes | None:
    """The certificate that a client is shown, as DER."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=certificate.context)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with server:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), ssl=context)
        found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        await writer.wait_closed()
    return found


def der(path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(path.read_text())


def test_the_files_of_the_config_are_shown(tmp_path):
    cert, key = make(tmp_path)
    certificate = Certificate.of(Security(tls_cert=cert, tls_key=key))
    assert asyncio.run(shown_by(certificate)) == der(cert)


def test_systemds_credentials_are_shown_where_the_config_names_none(tmp_path, monkeypatch):
    cert, key = make(tmp_path)
    key.chmod(0o440)  # as systemd's access list shows
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert asyncio.run(shown_by(Certificate.of(Security()))) == der(cert)


def test_without_either_there_is_none(monkeypatch):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert Certificate.of(Security()) is None


def test_a_renewed_certificate_is_shown_from_then_on(tmp_path):
    cert, key = make(tmp_path)
    certificate = Certificate(cert, key)
    assert not certificate.refresh()
    new_cert, new_key = make(tmp_path / "new")
    new_key.replace(key)
    new_cert.replace(cert)
    assert certificate.refresh()
    assert asyncio.run(shown_by(certificate)) == der(cert)
    assert not certificate.refresh()


def test_a_renewal_that_is_none_is_refused_once_and_the_old_one_goes_on(tmp_path):
    cert, key = make(tmp_path)
    before = der(cert)
    certificate = Certificate(cert, key)
    cert.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(ConfigError, match="expected a PEM chain"):
        certificate.refresh()
    assert not certificate.refresh()
    assert asyncio.run(shown_by(certificate)) == before


def test_a_certificate_without_its_key_or_with_anothers_is_refused(tmp_path):
    cert, key = make(tmp_path)
    _, other = make(tmp_path, "other")
    with pytest.raises(ConfigError, match=r"security\.tls_key: None, expected a file"):
        Certificate.of(Security(tls_cert=cert))
    with pytest.raises(ConfigError, match=r"security\.tls_cert: None, expected a file"):
        Certificate.of(Security(tls_key=key))
    with pytest.raises(ConfigError, match="KEY_VALUES_MISMATCH"):
        Certificate(cert, other)
    with pytest.raises(MissingError, match="TLS key"):
        Certificate(cert, tmp_path / "nowhere")


def test_a_key_that_others_may_read_is_refused(tmp_path):
    cert, key = make(tmp_path)
    key.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Certificate(cert, key)


def test_a_key_with_a_password_is_refused_rather_than_asked_for(tmp_path):
    cert, key = make(tmp_path)
    locked = tmp_path / "locked"
    command = ["openssl", "ec", "-in", str(key), "-out", str(locked), "-aes256", "-passout", "pass:secret"]
    subprocess.run(command, check=True, capture_output=True)
    locked.chmod(0o600)
    with pytest.raises(ConfigError, match="expected a PEM chain"):
        Certificate(cert, locked)


def test_older_versions_than_1_2_are_not_spoken(tmp_path):
    assert Certificate(*make(tmp_path)).context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_a_client_trusts_whom_it_is_told_to_and_asks_for_the_name(tmp_path):
    cert, _ = make(tmp_path)
    context = client_context(cert)
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert len(context.get_ca_certs()) == 1
    with pytest.raises(MissingError, match="--ca"):
        client_context(tmp_path / "nowhere")
    (tmp_path / "empty").write_text("")
    with pytest.raises(ConfigError, match="--ca"):
        client_context(tmp_path / "empty")
