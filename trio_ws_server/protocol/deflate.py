"""
permessage-deflate (RFC 7692) as a wsproto extension, in place of wsproto's own.

Nothing that a peer sends makes this raise, or inflate further than the largest message allowed. What belongs
to a message (is it compressed, how much may it still inflate to) is kept apart from what belongs to a frame,
because control frames come between the frames of a message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsproto.events import RejectConnection
from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, Opcode, RsvBits
from wsproto.utilities import RemoteProtocolError

from trio_ws_server.protocol.deflate_streams import LARGEST_WINDOW, Compressor, Decompressor
from trio_ws_server.protocol.violation import Violation

if TYPE_CHECKING:
    from collections.abc import Collection

    from wsproto.frame_protocol import FrameDecoder, FrameProtocol

    from trio_ws_server.config import Config

# RFC 7692 section 7.1: two parameters without a value, and two whose value is a window's size in bits.
_SWITCHES = ("server_no_context_takeover", "client_no_context_takeover")
_WINDOWS = ("server_max_window_bits", "client_max_window_bits")
_WINDOW_BITS = {form: bits for bits in range(8, 16) for form in (str(bits), f'"{bits}"')}
# zlib inflates with a window of 8 bits, but does not compress with one: it refuses, or takes 9 without a word.
_SMALLEST_WINDOW = 9


class Deflate(Extension):
    """
    permessage-deflate on one connection, on either side of it.

    wsproto's handshake calls ``accept`` on the server, ``offer`` and ``finalize`` on the client.
    A compressed message that inflates to more than ``max_message_size`` fails the connection with 1009, there
    and then. Messages that come uncompressed are the caller's to bound.
    """

    name = "permessage-deflate"

    __slots__ = (
        "_config",
        "_enabled",
        "_frame_is_compressed",
        "_frame_is_control",
        "_message_is_compressed",
        "_within_message",
        "compressor",
        "decompressor",
    )

    def __init__(self, config: Config) -> None:
        self._config = config
        self._enabled = False
        self.compressor = Compressor(config)
        self.decompressor = Decompressor(config.max_message_size)
        self._within_message = False
        self._message_is_compressed = False
        self._frame_is_control = False
        self._frame_is_compressed = False

    def enabled(self) -> bool:
        """Whether the handshake has agreed on compression."""
        return self._enabled

    # The handshake (RFC 7692 section 7.1)

    def accept(self, offer: str) -> str | None:
        """
        Return the server's answer to an offer, without the extension's name; ``None`` declines the offer.

        Of several offers the first that is acceptable is taken. Never raises.
        """
        if self._enabled:
            return None
        try:
            offered = _parse(offer, valueless=(*_SWITCHES, "client_max_window_bits"))
            # Section 7.1.1: asked or unasked, a server may turn context takeover off.
            agreed: dict[str, int | None] = {
                switch: None
                for switch in _SWITCHES
                if switch in offered or getattr(self._config, f"deflate_{switch}")
            }
            # Section 7.1.2: the answer is at most what was offered. A client's window that was not offered
            # must not be answered; the server's might be, but not every client would have it.
            for window in _WINDOWS:
                if window in offered:
                    agreed[window] = min(offered[window] or LARGEST_WINDOW, self._config.deflate_window_bits)
            self._enable("server", "client", agreed)
        except ValueError:
            return None
        return _format(agreed)

    def offer(self) -> str:
        """
        Return the client's offer, without the extension's name.

        The server's window is left to the server: some decline an offer that limits it, others ignore the
        limit.
        """
        asked: dict[str, int | None] = {"client_max_window_bits": self._config.deflate_window_bits}
        return _format(
            asked | {switch: None for switch in _SWITCHES if getattr(self._config, f"deflate_{switch}")}
        )

    def finalize(self, offer: str) -> None:
        """Take the server's answer to the offer; a bad one raises wsproto's ``RemoteProtocolError``."""
        try:
            if self._enabled:
                raise ValueError("the offer was answered already")
            agreed = _parse(offer, valueless=_SWITCHES)
            # Section 7.1.1.1: a server accepts this parameter by answering it.
            if self._config.deflate_server_no_context_takeover and "server_no_context_takeover" not in agreed:
                raise ValueError("server_no_context_takeover was asked for and is missing")
            # Section 7.1.1.2: a client that offers this is bound by it, whatever the server answers.
            if self._config.deflate_client_no_context_takeover:
                agreed["client_no_context_takeover"] = None
            self._enable("client", "server", agreed)
        except ValueError as error:
            raise RemoteProtocolError(
                f"the server must not answer the offer of permessage-deflate with {offer!r}: {error}",
                event_hint=RejectConnection(),
            ) from error

    def _enable(self, own: str, peer: str, agreed: dict[str, int | None]) -> None:
        """Raise ``ValueError`` if zlib cannot compress with the window agreed on."""
        # Section 7.1.2.2: a client's window is no larger than it offered, even where the server allows more.
        own_bits = min(
            agreed.get(f"{own}_max_window_bits") or LARGEST_WINDOW, self._config.deflate_window_bits
        )
        if own_bits < _SMALLEST_WINDOW:
            raise ValueError(f"zlib cannot compress with {own}_max_window_bits={own_bits}")
        self.compressor.window_bits = own_bits
        self.compressor.keeps_context = f"{own}_no_context_takeover" not in agreed
        self.decompressor.window_bits = agreed.get(f"{peer}_max_window_bits") or LARGEST_WINDOW
        self.decompressor.keeps_context = f"{peer}_no_context_takeover" not in agreed
        self._enabled = True

    # Frames that wsproto reads (RFC 7692 section 6)

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> RsvBits:
        """
        Begin a frame; return the reserved bits that have a meaning.

        wsproto calls this again for the same frame for as long as its masking key has yet to come.
        """
        begins_message = opcode in (Opcode.TEXT, Opcode.BINARY)
        if begins_message:
            # A message within a message is for wsproto to refuse, whatever it would inflate to.
            self._message_is_compressed = rsv.rsv1 and not self._within_message
            self.decompressor.start()
        self._frame_is_control = opcode.iscontrol()
        self._frame_is_compressed = self._message_is_compressed and not self._frame_is_control
        # Section 6: RSV1 is for the first frame of a message alone.
        return RsvBits(rsv1=begins_message, rsv2=False, rsv3=False)

    def frame_inbound_payload_data(
        self, proto: FrameDecoder | FrameProtocol, data: bytes
    ) -> bytes | CloseReason:
        """Return what a part of a frame's payload inflates to, or the code to close with."""
        return self._inflated(data, last=False) if self._frame_is_compressed else data

    def frame_inbound_complete(
        self, proto: FrameDecoder | FrameProtocol, fin: bool
    ) -> bytes | CloseReason | None:
        """End a frame; return what the end of a message inflates to, or the code to close with."""
        if not self._frame_is_control:
            self._within_message = not fin
        if not fin or not self._frame_is_compressed:
            return None
        self._message_is_compressed = False
        return self._inflated(b"", last=True)

    def _inflated(self, data: bytes, *, last: bool) -> bytes | CloseReason:
        try:
            return self.decompressor.inflate(data, last=last)
        except Violation as violation:
            return CloseReason(violation.code)


def _parse(extension: str, *, valueless: Collection[str]) -> dict[str, int | None]:
    """
    Return the parameters of an offer or an answer; ``ValueError`` if section 7.1 does not allow them.

    ``valueless`` names those that may stand without a value.
    """
    parameters: dict[str, int | None] = {}
    for parameter in extension.split(";")[1:]:
        name, equals, value = (part.strip(" \t") for part in parameter.partition("="))
        name = name.lower()
        if name not in _SWITCHES and name not in _WINDOWS:
            raise ValueError(f"unknown parameter {name!r}")
        if name in parameters:
            raise ValueError(f"{name} is there twice")
        if not equals and name in valueless:
            parameters[name] = None
        elif name in _SWITCHES:
            raise ValueError(f"{name} takes no value")
        elif value in _WINDOW_BITS:
            parameters[name] = _WINDOW_BITS[value]
        else:
            raise ValueError(f"{name} must be a whole number from 8 to 15, not {value!r}")
    return parameters


def _format(parameters: dict[str, int | None]) -> str:
    return "; ".join(name if value is None else f"{name}={value}" for name, value in parameters.items())
