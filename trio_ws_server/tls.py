"""The server's side of TLS: the ``--ssl-*`` options to an `ssl.SSLContext`, every mistake explained."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trio_ws_server.errors import ConfigError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    StrPath = str | os.PathLike[str]

__all__ = ["ServerTLS", "server_tls"]


@dataclass(frozen=True)
class ServerTLS:
    """A context for accepting TLS connections, and what the ASGI TLS extension tells of it."""

    context: ssl.SSLContext
    certificate: str | None
    """The certificate that the server sends (the first of its chain), as PEM; ``None`` if it isn't known."""
    cipher_suites: Mapping[str, int]
    """OpenSSL's name of each cipher suite to its number in the TLS specifications (16 bits)."""

    @classmethod
    def of(cls, context: ssl.SSLContext, certificate: str | None = None) -> ServerTLS:
        """
        Wrap a finished context. It doesn't give out its certificate, which therefore comes separately.

        Nothing about it is changed: the oldest version of TLS that it speaks, for one, is its maker's choice (and
        TLS 1.2 where that is left to Python).
        """
        suites = {suite["name"]: suite["id"] & 0xFFFF for suite in context.get_ciphers()}
        return cls(context, certificate, suites)


def server_tls(
    *,
    certfile: StrPath | None,
    keyfile: StrPath | None = None,
    keyfile_password: str | None = None,
    ca_certs: StrPath | None = None,
    cert_reqs: ssl.VerifyMode = ssl.CERT_NONE,
    ciphers: str | None = None,
) -> ServerTLS | None:
    """
    Read the files and build the context; ``None`` if no option is given, which means no TLS.

    ``certfile`` is a PEM file with the server's certificate and then those that lead up to its authority's,
    ``keyfile`` one with the private key (``None``: it is in ``certfile``). ``cert_reqs`` other than
    ``CERT_NONE`` asks clients for a certificate that one of ``ca_certs`` (a PEM file too) has signed; one
    that doesn't verify is refused in the handshake. ``ciphers`` is an OpenSSL cipher list, for TLS 1.2 alone.

    TLS 1.2 is the oldest version spoken, and ALPN (RFC 7301) offers ``http/1.1``. Nothing is ever asked on
    the terminal. Raises `ConfigError`, which names the option.
    """
    if certfile is None:
        options = {
            "--ssl-keyfile": keyfile,
            "--ssl-keyfile-password": keyfile_password,
            "--ssl-ca-certs": ca_certs,
            "--ssl-cert-reqs": cert_reqs,
            "--ssl-ciphers": ciphers,
        }
        given = [name for name, value in options.items() if value]
        if given:
            raise ConfigError(
                f"{', '.join(given)} given without --ssl-certfile; "
                "name the file with the server's certificate there, or leave TLS off"
            )
        return None

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A client that renegotiates makes us do its handshakes over and over, and TLS 1.3 has no such thing.
    context.options |= ssl.OP_NO_RENEGOTIATION
    # Debian's Python has it on, whereby a connection that is cut looks as if the peer had ended it (RFC 8446
    # section 6.1).
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    context.set_alpn_protocols(["http/1.1"])
    if ciphers is not None:
        _set_ciphers(context, ciphers)
    certificate = _certificates("--ssl-certfile", certfile)[0]
    _load_key(context, certfile, keyfile, keyfile_password)
    _verify_clients(context, cert_reqs, ca_certs)
    return ServerTLS.of(context, certificate)


_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)

# What OpenSSL says of a certificate and a key of one kind, and of two kinds (RSA and EC, say).
_MISMATCH = {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"}

# What it says of a key that it could not read; None where Python has no name for its word.
_UNREADABLE = {None, "PEM_LIB", "BAD_DECRYPT"}


def _set_ciphers(context: ssl.SSLContext, ciphers: str) -> None:
    try:
        context.set_ciphers(ciphers)
    except ssl.SSLError as error:
        raise ConfigError(
            f"--ssl-ciphers {ciphers!r} selects no cipher; give an OpenSSL cipher list such as "
            "'ECDHE+AESGCM' (`openssl ciphers` shows what one selects; TLS 1.3 suites are always on)"
        ) from error


def _load_key(
    context: ssl.SSLContext,
    certfile: StrPath,
    keyfile: StrPath | None,
    password: str | None,
) -> None:
    option, path = ("--ssl-certfile", certfile) if keyfile is None else ("--ssl-keyfile", keyfile)
    holder = f"{option} {path}"
    text = _read(option, path)
    if "PRIVATE KEY-----" not in text:
        raise ConfigError(
            f"{holder} holds no PEM private key (-----BEGIN PRIVATE KEY-----); "
            "give the file with the certificate's key as --ssl-keyfile"
        )
    try:
        # With no password at all OpenSSL would ask for one on the terminal.
        context.load_cert_chain(certfile, keyfile, password or "")
    except (ssl.SSLError, ValueError) as error:  # ValueError: a password too long for OpenSSL
        reason = getattr(error, "reason", None)
        if reason in _MISMATCH:
            problem = (
                f"the private key in {holder} does not belong to the certificate in --ssl-certfile "
                f"{certfile}; give the key that the certificate was made for"
            )
        elif "ENCRYPTED" in text and reason in _UNREADABLE:
            password_problem = "no password is given" if password is None else "the password does not open it"
            problem = (
                f"the private key in {holder} is encrypted, and {password_problem}; "
                "give its password as --ssl-keyfile-password"
            )
        else:
            problem = (
                f"the certificate in --ssl-certfile {certfile} and the private key in {holder} cannot be "
                f"used: {error}; check that both are whole, and strong enough for --ssl-ciphers"
            )
        raise ConfigError(problem) from error


def _verify_clients(context: ssl.SSLContext, cert_reqs: ssl.VerifyMode, ca_certs: StrPath | None) -> None:
    if ca_certs is None:
        if cert_reqs != ssl.CERT_NONE:
            raise ConfigError(
                f"--ssl-cert-reqs {cert_reqs.name} asks for client certificates, but nothing is there to "
                "verify them with; give the certificates of those who sign them as --ssl-ca-certs"
            )
        return
    if cert_reqs == ssl.CERT_NONE:
        raise ConfigError(
            f"--ssl-ca-certs {ca_certs} has no effect while --ssl-cert-reqs is CERT_NONE; "
            "set that to CERT_OPTIONAL or CERT_REQUIRED, or leave out --ssl-ca-certs"
        )
    context.load_verify_locations(cadata="\n".join(_certificates("--ssl-ca-certs", ca_certs)))
    context.verify_mode = cert_reqs


def _certificates(option: str, path: StrPath) -> list[str]:
    """Return the PEM certificates of a file, of which there is at least one, and all of which parse."""
    found = _CERTIFICATE.findall(_read(option, path))
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata="\n".join(found))
    except (ssl.SSLError, ValueError) as error:  # ValueError: none found
        raise ConfigError(
            f"{option} {path} is not a file of PEM certificates (-----BEGIN CERTIFICATE-----): {error}; give "
            "one that is (`openssl x509 -inform der` turns a DER certificate into PEM)"
        ) from error
    return found


def _read(option: str, path: StrPath) -> str:
    try:
        # PEM is ASCII (RFC 7468); what else there is must not stop us from seeing that there is no PEM.
        return Path(path).read_text("ascii", "backslashreplace")
    except OSError as error:
        raise ConfigError(
            f"cannot read {option} {path}: {error.strerror}; check the path and its permissions"
        ) from error
