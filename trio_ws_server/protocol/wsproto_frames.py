"""The frames that are wsproto's: fragments of messages, control frames between them, wrong frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import wsproto.events as ws
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, Opcode, RsvBits

from trio_ws_server.close_codes import Close, CloseCode
from trio_ws_server.protocol.violation import Violation

if TYPE_CHECKING:
    from wsproto.frame_protocol import FrameDecoder, FrameProtocol

    from trio_ws_server.config import Config


class WsprotoFrames:
    """
    A `wsproto.Connection` that is shown some of the frames that a connection receives, and none that it sends.

    Whole frames can pass it by while `within_message` is false: what is between messages has no effect on what
    wsproto makes of later frames. Nor has our own close frame: a connection that has sent one reads on as before.
    """

    __slots__ = ("_bad_gateway", "_connection", "_limits")

    def __init__(self, config: Config, *, client: bool, deflate: Extension | None) -> None:
        self._limits = _MessageLimits(config)
        self._bad_gateway = _BadGateway()
        extensions: list[Extension] = [self._limits, self._bad_gateway]
        if deflate is not None:
            extensions.append(deflate)
        self._connection = Connection(ConnectionType.CLIENT if client else ConnectionType.SERVER, extensions)

    @property
    def within_message(self) -> bool:
        """Whether the frames so far leave a message incomplete."""
        return self._limits.fragments > 0

    def receive(self, data: bytes) -> ws.Event | Close | None:
        """
        Take bytes of a frame, to its end at most; return the event, or the close frame's content, that they bring.

        Raises `Violation`, after which nothing more can be received.
        """
        self._connection.receive_data(data)
        event = next(self._connection.events(), None)
        if not isinstance(event, ws.CloseConnection):
            return event
        if self._connection.state is ConnectionState.OPEN:
            # An error comes as if it were a close frame, but leaves the state as it is.
            raise Violation(event.code, event.reason or "")
        code = CloseCode.BAD_GATEWAY if self._bad_gateway.seen else event.code
        return Close(int(code), event.reason or "")


class _FrameHook(Extension):
    """Sees each frame that arrives before wsproto does. No extension of the wire: nothing is negotiated."""

    def enabled(self) -> bool:
        return True

    def offer(self) -> bool:
        raise NotImplementedError


class _MessageLimits(_FrameHook):
    """
    Refuses a frame by its header where it would make a message larger than the limit, or of too many fragments.

    wsproto calls `frame_inbound_header` again for the same frame when it lacks the masking key, so a frame is
    only counted when it is complete.
    """

    name = "trio-ws-server-message-limits"

    def __init__(self, config: Config) -> None:
        self._max_size = config.max_message_size
        self._max_fragments = config.max_message_fragments
        self.fragments = 0
        """How many the message under way has so far."""
        self._before = 0
        self._frame = 0
        self._is_control = False

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        self._is_control = opcode.iscontrol()
        if not self._is_control:
            self._frame = payload_length
            if self._before + self._frame > self._max_size:
                return CloseReason.MESSAGE_TOO_BIG
            if self.fragments == self._max_fragments:
                return CloseReason.POLICY_VIOLATION
        return RsvBits(False, False, False)

    def frame_inbound_complete(self, proto: FrameDecoder | FrameProtocol, fin: bool) -> None:
        if not self._is_control:
            self._before = 0 if fin else self._before + self._frame
            self.fragments = 0 if fin else self.fragments + 1


class _BadGateway(_FrameHook):
    """
    Lets close code 1014 pass, which is registered with IANA (bad gateway) but reserved for wsproto.

    wsproto is shown its neighbour 1013 instead, which is as good a code; `seen` tells the two apart.
    """

    name = "trio-ws-server-bad-gateway"
    _CODE = CloseCode.BAD_GATEWAY.to_bytes(2, "big")
    _SHOWN = CloseCode.TRY_AGAIN_LATER.to_bytes(2, "big")

    def __init__(self) -> None:
        self.seen = False
        self._is_close = False

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        self._is_close = opcode is Opcode.CLOSE
        return RsvBits(False, False, False)

    def frame_inbound_payload_data(
        self, proto: FrameDecoder | FrameProtocol, data: bytes
    ) -> bytes | CloseReason:
        # The payload of a control frame comes in one piece.
        self.seen = self._is_close and data.startswith(self._CODE)
        return self._SHOWN + data[2:] if self.seen else data
