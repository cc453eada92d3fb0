"""The TLS options become a context that speaks TLS, or an error that says which option is wrong and how."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from trio.testing import memory_stream_pair

from trio_ws_server.errors import ConfigError
from trio_ws_server.tls import ServerTLS, server_tls

CA = trustme.CA()
CERT = CA.issue_cert("server.test")
CLIENT_CERT = CA.issue_cert("client@client.test")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a server's files in it."""
    monkeypatch.chdir(tmp_path)
    CERT.cert_chain_pems[0].write_to_path("cert.pem")
    CERT.private_key_pem.write_to_path("key.pem")
    CERT.private_key_and_cert_chain_pem.write_to_path("both.pem")
    CA.cert_pem.write_to_path("ca.pem")
    Path("empty").touch()
    return tmp_path


def encrypt_key(password: str) -> None:
    key = serialization.load_pem_private_key(CERT.private_key_pem.bytes(), None)
    Path("encrypted.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password.encode()))
    )


def tls(**options: Any) -> ServerTLS:
    made = server_tls(**{"certfile": "cert.pem", "keyfile": "key.pem", **options})
    assert made is not None
    return made


def refusal(**options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        tls(**options)
    return str(caught.value)


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    CA.configure_trust(context)
    return context


async def handshake(
    server: ServerTLS, client: ssl.SSLContext
) -> tuple[trio.SSLStream[Any], trio.SSLStream[Any]]:
    """Return the server's and the client's end of a connection whose handshake is done."""
    client_end, server_end = memory_stream_pair()
    server_stream = trio.SSLStream(server_end, server.context, server_side=True)
    client_stream = trio.SSLStream(client_end, client, server_hostname="server.test")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server_stream.do_handshake)
        nursery.start_soon(client_stream.do_handshake)
    return server_stream, client_stream


@pytest.mark.usefixtures("files")
async def test_a_client_that_trusts_the_authority_can_talk_to_the_server() -> None:
    server, client = await handshake(tls(), client_context())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, b"hello")
        assert await server.receive_some() == b"hello"


@pytest.mark.usefixtures("files")
async def test_the_key_may_be_in_the_certificate_file() -> None:
    server, _ = await handshake(tls(certfile="both.pem", keyfile=None), client_context())
    assert server.version() == "TLSv1.3"


@pytest.mark.usefixtures("files")
async def test_an_encrypted_key_opens_with_its_password() -> None:
    encrypt_key("secret")
    server, _ = await handshake(tls(keyfile="encrypted.pem", keyfile_password="secret"), client_context())
    assert server.version() == "TLSv1.3"


@pytest.mark.usefixtures("files")
async def test_the_server_chooses_http_1_1_by_alpn() -> None:
    client = client_context()
    client.set_alpn_protocols(["h2", "http/1.1"])
    server, _ = await handshake(tls(), client)
    assert server.selected_alpn_protocol() == "http/1.1"


@pytest.mark.usefixtures("files")
async def test_a_client_that_speaks_tls_1_2_at_most_is_served() -> None:
    client = client_context()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    server, _ = await handshake(tls(), client)
    assert server.version() == "TLSv1.2"


@pytest.mark.usefixtures("files")
def test_nothing_older_than_tls_1_2_is_spoken_and_nothing_is_renegotiated() -> None:
    context = tls().context
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION


def client_hello(version: ssl.TLSVersion) -> bytes:
    """
    Return the first record of a client that speaks the version at most (RFC 4346 section 7.4.1.2).

    By hand, because not every OpenSSL still speaks the old ones. The extensions name a curve, and for TLS 1.2 a
    signature algorithm, that go with the server's certificate.
    """

    def sized(width: int, *parts: bytes) -> bytes:
        content = b"".join(parts)
        return len(content).to_bytes(width, "big") + content

    # TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, which is for any version up to 1.2, and ..._GCM_SHA256, for that alone
    suites = sized(2, b"\xc0\x09\xc0\x2b")
    curves = b"\0\x0a" + sized(2, sized(2, b"\0\x17"))
    signatures = b"\0\x0d" + sized(2, sized(2, b"\4\3"))
    number = version.to_bytes(2, "big")
    hello = number + bytes(32) + sized(1) + suites + sized(1, b"\0") + sized(2, curves, signatures)
    return b"\x16\x03\x01" + sized(2, b"\x01" + sized(3, hello))


ALERT, HANDSHAKE = 21, 22
PROTOCOL_VERSION = b"\x02\x46"  # fatal, 70 (RFC 5246 section 7.2)


def answer_to(hello: bytes, context: ssl.SSLContext) -> tuple[int, bytes]:
    """Return the type and the content of the first record that a server with this context answers with."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    incoming.write(hello)
    with contextlib.suppress(ssl.SSLError):  # it waits for more, or refuses
        context.wrap_bio(incoming, outgoing, server_side=True).do_handshake()
    record = outgoing.read()
    return record[0], record[5 : 5 + int.from_bytes(record[3:5], "big")]


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.parametrize("ciphers", [None, "ALL:@SECLEVEL=0"])
def test_a_client_that_speaks_less_than_tls_1_2_is_told_that_it_is_the_version(
    version: ssl.TLSVersion, ciphers: str | None
) -> None:
    assert answer_to(client_hello(version), tls(ciphers=ciphers).context) == (ALERT, PROTOCOL_VERSION)


@pytest.mark.usefixtures("files")
def test_the_same_client_is_served_where_it_speaks_tls_1_2() -> None:
    kind, message = answer_to(client_hello(ssl.TLSVersion.TLSv1_2), tls().context)
    assert (kind, message[0]) == (HANDSHAKE, 2)  # ServerHello


@pytest.mark.usefixtures("files")
async def test_a_client_of_this_openssl_that_is_held_to_tls_1_1_is_refused() -> None:
    client = client_context()
    client.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.deprecated_call():
        client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ExceptionGroup) as refused:
        await handshake(tls(), client)
    [error] = refused.value.exceptions
    assert isinstance(error.__cause__, ssl.SSLError)
    assert error.__cause__.reason == "UNSUPPORTED_PROTOCOL"


@pytest.mark.usefixtures("files")
def test_a_context_made_elsewhere_speaks_what_it_was_made_for() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("cert.pem", "key.pem")
    hello = client_hello(ssl.TLSVersion.TLSv1_1)
    assert answer_to(hello, ServerTLS.of(context).context) == (ALERT, PROTOCOL_VERSION)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.deprecated_call():
        context.minimum_version = ssl.TLSVersion.TLSv1_1
    kind, message = answer_to(hello, ServerTLS.of(context).context)
    assert (kind, message[0]) == (HANDSHAKE, 2)


@pytest.mark.usefixtures("files")
async def test_the_cipher_list_decides_the_cipher_of_tls_1_2() -> None:
    client = client_context()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    server, _ = await handshake(tls(ciphers="ECDHE-ECDSA-CHACHA20-POLY1305"), client)
    assert server.cipher()[0] == "ECDHE-ECDSA-CHACHA20-POLY1305"


@pytest.mark.usefixtures("files")
def test_the_certificate_is_the_first_of_the_file() -> None:
    Path("chain.pem").write_bytes(CERT.cert_chain_pems[0].bytes() + CA.cert_pem.bytes())
    assert tls(certfile="chain.pem").certificate == CERT.cert_chain_pems[0].bytes().decode().strip()


@pytest.mark.usefixtures("files")
def test_cipher_suites_have_the_numbers_of_their_rfcs() -> None:
    suites = tls().cipher_suites
    assert suites["TLS_AES_128_GCM_SHA256"] == 0x1301  # RFC 8446 appendix B.4
    assert suites["ECDHE-ECDSA-AES128-GCM-SHA256"] == 0xC02B  # RFC 5289 section 5


def test_a_context_made_elsewhere_can_be_used_without_its_certificate() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    wrapped = ServerTLS.of(context)
    assert wrapped.context is context
    assert wrapped.certificate is None
    assert wrapped.cipher_suites["TLS_AES_128_GCM_SHA256"] == 0x1301


@pytest.mark.usefixtures("files")
async def test_a_client_certificate_is_verified_when_it_is_asked_for() -> None:
    client = client_context()
    CLIENT_CERT.configure_cert(client)
    server, _ = await handshake(tls(ca_certs="ca.pem", cert_reqs=ssl.CERT_REQUIRED), client)
    assert server.getpeercert()["subjectAltName"] == (("email", "client@client.test"),)


@pytest.mark.usefixtures("files")
async def test_an_optional_client_certificate_may_be_left_out() -> None:
    server, _ = await handshake(tls(ca_certs="ca.pem", cert_reqs=ssl.CERT_OPTIONAL), client_context())
    assert server.getpeercert(binary_form=True) is None


@pytest.mark.usefixtures("files")
async def test_a_client_without_the_required_certificate_is_refused() -> None:
    server = tls(ca_certs="ca.pem", cert_reqs=ssl.CERT_REQUIRED)
    with pytest.RaisesGroup(trio.BrokenResourceError):
        await handshake(server, client_context())


def test_no_option_at_all_means_no_tls() -> None:
    assert server_tls(certfile=None) is None


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"keyfile": "key.pem"}, "--ssl-keyfile"),
        ({"ca_certs": "ca.pem", "cert_reqs": ssl.CERT_REQUIRED}, "--ssl-ca-certs, --ssl-cert-reqs"),
        ({"keyfile_password": "secret", "ciphers": "ALL"}, "--ssl-keyfile-password, --ssl-ciphers"),
    ],
)
def test_options_without_a_certificate_are_an_error_rather_than_no_tls(
    options: dict[str, Any], names: str
) -> None:
    assert refusal(certfile=None, **{"keyfile": None, **options}) == (
        f"{names} given without --ssl-certfile; "
        "name the file with the server's certificate there, or leave TLS off"
    )


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"certfile": "none.pem"}, "--ssl-certfile"),
        ({"keyfile": "none.pem"}, "--ssl-keyfile"),
        ({"ca_certs": "none.pem", "cert_reqs": ssl.CERT_OPTIONAL}, "--ssl-ca-certs"),
    ],
)
def test_a_missing_file_is_an_error_that_names_its_option(options: dict[str, Any], option: str) -> None:
    assert refusal(**options) == (
        f"cannot read {option} none.pem: No such file or directory; check the path and its permissions"
    )


@pytest.mark.usefixtures("files")
def test_a_directory_in_place_of_a_file_is_an_error() -> None:
    assert refusal(certfile=".") == (
        "cannot read --ssl-certfile .: Is a directory; check the path and its permissions"
    )


def write_certificates() -> None:
    pem = CERT.cert_chain_pems[0].bytes().decode()
    Path("der").write_bytes(ssl.PEM_cert_to_DER_cert(pem))
    Path("garbled").write_text(pem[:100] + "é!" + pem[100:])
    Path("garbled second").write_text(pem + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("name", ["empty", "key.pem", "der", "garbled", "garbled second"])
def test_a_file_that_is_not_of_pem_certificates_is_an_error(name: str) -> None:
    write_certificates()
    for option, message in (
        ("--ssl-certfile", refusal(certfile=name)),
        ("--ssl-ca-certs", refusal(ca_certs=name, cert_reqs=ssl.CERT_REQUIRED)),
    ):
        assert message.startswith(f"{option} {name} is not a file of PEM certificates (-----BEGIN")
        assert message.endswith(
            "give one that is (`openssl x509 -inform der` turns a DER certificate into PEM)"
        )


@pytest.mark.usefixtures("files")
def test_a_file_without_a_key_is_an_error() -> None:
    assert refusal(keyfile="cert.pem") == (
        "--ssl-keyfile cert.pem holds no PEM private key (-----BEGIN PRIVATE KEY-----); "
        "give the file with the certificate's key as --ssl-keyfile"
    )


@pytest.mark.usefixtures("files")
def test_a_certificate_file_without_its_key_is_an_error_when_no_key_file_is_given() -> None:
    assert refusal(keyfile=None).startswith("--ssl-certfile cert.pem holds no PEM private key")


def write_other_keys() -> None:
    CA.issue_cert("server.test").private_key_pem.write_to_path("ec.pem")
    key = rsa.generate_private_key(65537, 2048)
    Path("rsa.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, serialization.NoEncryption())
    )


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("name", ["ec.pem", "rsa.pem"])
def test_another_certificates_key_is_an_error(name: str) -> None:
    write_other_keys()
    assert refusal(keyfile=name) == (
        f"the private key in --ssl-keyfile {name} does not belong to the certificate in "
        "--ssl-certfile cert.pem; give the key that the certificate was made for"
    )


@pytest.mark.usefixtures("files")
def test_an_encrypted_key_without_a_password_is_an_error_and_not_a_prompt() -> None:
    encrypt_key("secret")
    assert refusal(keyfile="encrypted.pem") == (
        "the private key in --ssl-keyfile encrypted.pem is encrypted, and no password is given; "
        "give its password as --ssl-keyfile-password"
    )


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("password", ["wrong", "", "x" * 2000])
def test_a_wrong_password_is_an_error_that_does_not_tell_it(password: str) -> None:
    encrypt_key("secret")
    assert refusal(keyfile="encrypted.pem", keyfile_password=password) == (
        "the private key in --ssl-keyfile encrypted.pem is encrypted, and the password does not open it; "
        "give its password as --ssl-keyfile-password"
    )


@pytest.mark.usefixtures("files")
def test_a_garbled_key_is_an_error() -> None:
    Path("garbled.pem").write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    message = refusal(keyfile="garbled.pem")
    assert message.startswith(
        "the certificate in --ssl-certfile cert.pem and the private key in --ssl-keyfile garbled.pem "
        "cannot be used: "
    )


@pytest.mark.usefixtures("files")
def test_a_certificate_too_weak_for_the_ciphers_is_an_error_that_says_so() -> None:
    message = refusal(ciphers="DEFAULT:@SECLEVEL=4")
    assert "EE_KEY_TOO_SMALL" in message
    assert message.endswith("check that both are whole, and strong enough for --ssl-ciphers")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("ciphers", ["", "NONSENSE", "TLS_AES_128_GCM_SHA256"])
def test_a_cipher_list_that_selects_nothing_is_an_error(ciphers: str) -> None:
    assert refusal(ciphers=ciphers) == (
        f"--ssl-ciphers {ciphers!r} selects no cipher; give an OpenSSL cipher list such as "
        "'ECDHE+AESGCM' (`openssl ciphers` shows what one selects; TLS 1.3 suites are always on)"
    )


@pytest.mark.usefixtures("files")
def test_asking_for_client_certificates_with_nothing_to_verify_them_is_an_error() -> None:
    assert refusal(cert_reqs=ssl.CERT_REQUIRED) == (
        "--ssl-cert-reqs CERT_REQUIRED asks for client certificates, but nothing is there to verify "
        "them with; give the certificates of those who sign them as --ssl-ca-certs"
    )


@pytest.mark.usefixtures("files")
def test_client_authorities_that_would_not_be_used_are_an_error() -> None:
    assert refusal(ca_certs="ca.pem") == (
        "--ssl-ca-certs ca.pem has no effect while --ssl-cert-reqs is CERT_NONE; "
        "set that to CERT_OPTIONAL or CERT_REQUIRED, or leave out --ssl-ca-certs"
    )
