"""The ASGI TLS extension (version 0.2): what an application learns of its connection's TLS."""

from __future__ import annotations

import contextlib
import re
import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_ws_server.peer import AgreedTLS
    from trio_ws_server.tls import ServerTLS

__all__ = ["tls_extension"]


def tls_extension(agreed: AgreedTLS, server: ServerTLS) -> dict[object, object]:
    """
    Return ``scope["extensions"]["tls"]`` of a connection.

    The same for every scope of the connection. ``client_cert_chain`` is the whole chain as the client sent it
    from Python 3.13 on, which is the first to give it out; before, and in a resumed session, it is the
    client's own certificate alone.
    ``client_cert_error`` is always ``None``: a client whose certificate fails never gets past the handshake.
    """
    chain = agreed.client_certificates
    return {
        "server_cert": server.certificate,
        "client_cert_chain": [ssl.DER_cert_to_PEM_cert(der) for der in chain],
        "client_cert_name": _distinguished_name(_subject(chain[0])) if chain else None,
        "client_cert_error": None,
        "tls_version": ssl.TLSVersion[agreed.version.replace(".", "_")].value,
        "cipher_suite": server.cipher_suites.get(agreed.cipher),
    }


# RFC 4514 section 3: the short names that every implementation knows.
_SHORT_NAMES = {
    "2.5.4.3": "CN",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.9": "STREET",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
    "0.9.2342.19200300.100.1.1": "UID",
    "0.9.2342.19200300.100.1.25": "DC",
}

# The ASN.1 string types by tag. Those of ASCII are read as UTF-8, which issuers put there all the same; a
# Teletex string is in practice Latin-1, as OpenSSL takes it.
_ENCODINGS = {
    0x0C: "utf-8",  # UTF8String
    0x12: "utf-8",  # NumericString
    0x13: "utf-8",  # PrintableString
    0x14: "latin-1",  # TeletexString
    0x16: "utf-8",  # IA5String
    0x1A: "utf-8",  # VisibleString
    0x1C: "utf-32-be",  # UniversalString
    0x1E: "utf-16-be",  # BMPString
}

_VERSION_TAG = 0xA0

# RFC 4514 section 2.4: these anywhere, "#" and a space at the beginning, a space at the end.
_SPECIAL = re.compile(r'^[ #]|["+,;<>\\]| \Z')


def _subject(certificate: bytes) -> bytes:
    """Return the contents of the subject field of a certificate in DER (RFC 5280 section 4.1)."""
    _, certificate_fields, _ = next(_elements(certificate))
    _, to_be_signed, _ = next(_elements(certificate_fields))
    fields = [contents for tag, contents, _ in _elements(to_be_signed) if tag != _VERSION_TAG]
    _serial_number, _signature, _issuer, _validity, subject, *_ = fields
    return subject


def _distinguished_name(name: bytes) -> str:
    """
    Write the contents of an X.501 name as RFC 4514 says: the most specific part first.

    Taken from the DER rather than from the dictionary of ``getpeercert()``, which has neither the object
    identifiers nor the encoded values that section 2.4 asks for where an attribute has no short name.
    """
    relative_names = [
        "+".join(_attribute(contents) for _, contents, _ in _elements(relative_name))
        for _, relative_name, _ in _elements(name)
    ]
    return ",".join(reversed(relative_names))


def _attribute(attribute: bytes) -> str:
    (_, type_, _), (tag, value, encoded) = _elements(attribute)
    identifier = _dotted(type_)
    if identifier in _SHORT_NAMES and tag in _ENCODINGS:
        with contextlib.suppress(UnicodeDecodeError):
            return f"{_SHORT_NAMES[identifier]}={_escaped(value.decode(_ENCODINGS[tag]))}"
    return f"{_SHORT_NAMES.get(identifier, identifier)}=#{encoded.hex()}"


def _escaped(value: str) -> str:
    return _SPECIAL.sub(r"\\\g<0>", value).replace("\0", r"\00")


def _dotted(identifier: bytes) -> str:
    """Decode an object identifier (X.690 section 8.19)."""
    arcs = [0]
    for octet in identifier:
        arcs[-1] = arcs[-1] << 7 | octet & 0x7F
        if octet < 0x80:
            arcs.append(0)
    first = min(arcs[0] // 40, 2)  # the first two arcs share a number
    return ".".join(map(str, [first, arcs[0] - 40 * first, *arcs[1:-1]]))


def _elements(der: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield the tag, the contents and the whole encoding of each of the elements that follow each other."""
    while der:
        start, length = 2, der[1]
        if length >= 0x80:  # the long form: the number of octets that hold the length
            start += length - 0x80
            length = int.from_bytes(der[2:start], "big")
        end = start + length
        yield der[0], der[start:end], der[:end]
        der = der[end:]
