"""The ASGI TLS extension tells what was agreed in the handshake, and names clients as RFC 4514 does."""

from __future__ import annotations

import datetime
import ssl
import sys
from typing import TYPE_CHECKING

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import example, given
from hypothesis import strategies as st

from tests.tls_ends import End, shake_hands
from trio_ws_server.asgi.tls import _distinguished_name, _subject, tls_extension
from trio_ws_server.peer import AgreedTLS
from trio_ws_server.tls import ServerTLS, server_tls

if TYPE_CHECKING:
    from pathlib import Path

SERVER_CA = trustme.CA()
# Another authority: one that the client trusts itself, OpenSSL would send along with its certificates.
CLIENT_CA = trustme.CA()
INTERMEDIATE_CA = CLIENT_CA.create_child_ca()
SERVER_CERT = SERVER_CA.issue_cert("server.test")
CLIENT_CERT = CLIENT_CA.issue_cert(
    "client@client.test", common_name="Ann, the client", organization_name="Clients"
)
KEY = Ed25519PrivateKey.generate()


@pytest.fixture
def server(tmp_path: Path) -> ServerTLS:
    """Return a server that asks for client certificates but takes clients without one."""
    SERVER_CERT.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    CLIENT_CA.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = server_tls(
        certfile=tmp_path / "server.pem", ca_certs=tmp_path / "ca.pem", cert_reqs=ssl.CERT_OPTIONAL
    )
    assert tls is not None
    return tls


def client_context(certificate: trustme.LeafCert | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    SERVER_CA.configure_trust(context)
    if certificate is not None:
        certificate.configure_cert(context)
    return context


def handshake(
    server: ServerTLS, client: ssl.SSLContext, *, session: ssl.SSLSession | None = None
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Return the server's and the client's end of a connection whose handshake is done."""
    server_end, client_end = End.of_server(server.context), End.of_client(client, session)
    shake_hands(client_end, server_end)
    return server_end.ssl_object, client_end.ssl_object


def pem(blob: trustme.Blob) -> str:
    """Write a certificate as OpenSSL does, which ends every line."""
    return ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(blob.bytes().decode()))


def certificate_of(subject: x509.Name) -> bytes:
    """Return a self-signed certificate in DER."""
    now = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder(
        subject_name=subject,
        issuer_name=subject,
        public_key=KEY.public_key(),
        serial_number=1,
        not_valid_before=now,
        not_valid_after=now + datetime.timedelta(days=1),
    )
    return builder.sign(KEY, None).public_bytes(Encoding.DER)


def name_of(subject: x509.Name) -> str:
    return _distinguished_name(_subject(certificate_of(subject)))


def test_without_a_client_certificate_only_the_servers_side_is_told(server: ServerTLS) -> None:
    connection, _ = handshake(server, client_context())
    agreed = connection.cipher()
    assert agreed is not None
    assert tls_extension(AgreedTLS.of(connection), server) == {
        "server_cert": SERVER_CERT.cert_chain_pems[0].bytes().decode().strip(),
        "client_cert_chain": [],
        "client_cert_name": None,
        "client_cert_error": None,
        "tls_version": 0x0304,
        "cipher_suite": server.cipher_suites[agreed[0]],
    }


def test_the_cipher_suite_is_the_number_of_the_one_agreed_on(server: ServerTLS) -> None:
    client = client_context()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384")
    connection, _ = handshake(server, client)
    extension = tls_extension(AgreedTLS.of(connection), server)
    assert extension["tls_version"] == 0x0303
    assert extension["cipher_suite"] == 0xC02C  # RFC 5289 section 5


def test_a_client_certificate_comes_with_its_name(server: ServerTLS) -> None:
    connection, _ = handshake(server, client_context(CLIENT_CERT))
    extension = tls_extension(AgreedTLS.of(connection), server)
    [certificate] = CLIENT_CERT.cert_chain_pems
    assert extension["client_cert_chain"] == [pem(certificate)]
    assert extension["client_cert_name"] == rf"CN=Ann\, the client,OU={unit_of(CLIENT_CERT)},O=Clients"
    assert extension["client_cert_error"] is None


def unit_of(certificate: trustme.LeafCert) -> str:
    subject = x509.load_pem_x509_certificate(certificate.cert_chain_pems[0].bytes()).subject
    [unit] = subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    assert isinstance(unit.value, str)
    return unit.value


def test_the_certificates_between_the_clients_and_its_authoritys_are_told_where_python_can(
    server: ServerTLS,
) -> None:
    certificate = INTERMEDIATE_CA.issue_cert("client@client.test")
    connection, _ = handshake(server, client_context(certificate))
    sent = [pem(blob) for blob in certificate.cert_chain_pems]
    assert len(sent) == 2
    told = tls_extension(AgreedTLS.of(connection), server)["client_cert_chain"]
    assert told == (sent if sys.version_info >= (3, 13) else sent[:1])


def test_a_resumed_session_still_has_the_clients_certificate(server: ServerTLS) -> None:
    client = client_context(CLIENT_CERT)
    client.maximum_version = ssl.TLSVersion.TLSv1_2  # whose session is there when the handshake is done
    first, first_client = handshake(server, client)
    resumed, _ = handshake(server, client, session=first_client.session)
    assert resumed.session_reused
    assert tls_extension(AgreedTLS.of(resumed), server) == tls_extension(AgreedTLS.of(first), server)


def test_before_the_handshake_there_is_nothing_to_tell(server: ServerTLS) -> None:
    with pytest.raises(ValueError, match="handshake not done yet"):
        AgreedTLS.of(End.of_server(server.context).ssl_object)


# Names, with cryptography as the authority on RFC 4514


SHORT_NAMED = [
    NameOID.COMMON_NAME,
    NameOID.LOCALITY_NAME,
    NameOID.STATE_OR_PROVINCE_NAME,
    NameOID.ORGANIZATION_NAME,
    NameOID.ORGANIZATIONAL_UNIT_NAME,
    NameOID.STREET_ADDRESS,
    NameOID.DOMAIN_COMPONENT,
    NameOID.USER_ID,
]
odd_text = st.text(
    st.sampled_from(' "#+,;<=>\\\0aé\n☃😀') | st.characters(exclude_categories=["Cs"]),
    min_size=1,
    max_size=12,
).filter(lambda text: len(text.encode()) <= 32)
attributes = st.builds(x509.NameAttribute, st.sampled_from(SHORT_NAMED), odd_text)
relative_names = st.lists(attributes, min_size=1, max_size=3, unique=True).map(x509.RelativeDistinguishedName)
identifiers = st.builds(
    lambda first, rest: ".".join(map(str, [*first, *rest])),
    st.tuples(st.integers(0, 1), st.integers(0, 39)) | st.tuples(st.just(2), st.integers(0, 2**20)),
    st.lists(st.integers(0, 2**40), min_size=1, max_size=5),
).map(x509.ObjectIdentifier)


@given(st.lists(relative_names, max_size=5).map(x509.Name))
@example(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text) for text in (" ", "  ", "#", "# ", "\\ ")]))
@example(x509.Name([x509.NameAttribute(NameOID.COUNTRY_NAME, "AQ")]))
def test_names_are_written_as_cryptography_writes_them(subject: x509.Name) -> None:
    certificate = certificate_of(subject)
    written = x509.load_der_x509_certificate(certificate).subject.rfc4514_string()
    assert _distinguished_name(_subject(certificate)) == written


@given(identifiers, st.text(min_size=1, max_size=200).filter(lambda text: len(text.encode()) < 256))
def test_an_attribute_without_a_short_name_is_an_object_identifier_and_its_encoded_value(
    identifier: x509.ObjectIdentifier, value: str
) -> None:
    encoded = der(0x0C, value.encode())
    name = x509.Name([x509.NameAttribute(identifier, value)])
    assert name_of(name) == f"{identifier.dotted_string}=#{encoded.hex()}"


def der(tag: int, contents: bytes) -> bytes:
    length = len(contents)
    octets = bytes([length]) if length < 128 else bytes([0x81, length])
    return bytes([tag]) + octets + contents


def common_name(tag: int, value: bytes) -> str:
    return _distinguished_name(der(0x31, der(0x30, der(0x06, b"\x55\x04\x03") + der(tag, value))))


@pytest.mark.parametrize(
    ("tag", "value", "text"),
    [
        (0x0C, "Zoë".encode(), "Zoë"),
        (0x12, b"123", "123"),
        (0x13, b"Zoe", "Zoe"),
        (0x14, b"Zo\xeb", "Zoë"),
        (0x16, b"zoe@client.test", "zoe@client.test"),
        (0x1A, b"Zoe", "Zoe"),
        (0x1C, "Zoë".encode("utf-32-be"), "Zoë"),
        (0x1E, "Zoë".encode("utf-16-be"), "Zoë"),
    ],
)
def test_every_asn1_string_type_is_read(tag: int, value: bytes, text: str) -> None:
    assert common_name(tag, value) == f"CN={text}"


@pytest.mark.parametrize(
    ("tag", "value"),
    [(0x03, b"\0abc"), (0x0C, b"\xff"), (0x13, b"Zo\xeb"), (0x1E, b"\xd8\x00")],
    ids=["bit string", "broken UTF-8", "Latin-1 as printable string", "half a surrogate pair"],
)
def test_a_value_that_is_not_text_is_given_encoded(tag: int, value: bytes) -> None:
    assert common_name(tag, value) == f"CN=#{der(tag, value).hex()}"


def test_the_subject_is_found_in_a_certificate_of_version_1() -> None:
    # RFC 5280 section 4.1: version 1 is the default, and as such left out.
    parts = [der(0x02, b"\1"), der(0x30, b"signature"), der(0x30, b"issuer"), der(0x30, b"validity")]
    to_be_signed = der(0x30, b"".join(parts) + der(0x30, b"subject") + der(0x30, b"key"))
    assert _subject(der(0x30, to_be_signed + der(0x30, b"algorithm"))) == b"subject"
