"""
What the peer sends, on its way to the tasks that receive it.

What arrives is taken from the transport at once and made into messages, in turns where it is much. Here they wait
until tasks take them; an inbox that is full pauses the transport. No task is needed but those of the application,
as long as no more has come than one turn takes.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

import trio

from trio_ws_server.close_codes import CloseCode
from trio_ws_server.protocol.websocket import Ending, Internal, Ping, Pong
from trio_ws_server.rate_limit import RateLimit
from trio_ws_server.scheduling import Changes, pace

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from trio_ws_server.config import Config
    from trio_ws_server.protocol.websocket import WebSocketProtocol
    from trio_ws_server.transport import Transport

EVENTS_PER_TURN = 64
"""Frames that are taken before other tasks get their turn: one read can bring 40,000."""

EVENTS_AT_THE_END = 4096
"""
Frames that are taken, into an inbox however full, when the connection is lost and no other turn comes.

Inflated, they may be as large as one message, and one more.
"""

PAYLOAD_PER_TURN = 256 * 1024
"""Bytes of payload after which a turn is over too: one read of compressed messages can inflate to 64 MiB."""

PAYLOAD_PER_CALL = 64 * 1024
"""Bytes of payload that a call which makes room for them may take on its way, and not have to give way for it."""

# The member of an enum, looked up once.
_INTERNAL = Internal.EVENT


class Owner(Protocol):
    """A connection, as its inbox knows it."""

    def control_received(self, event: Ping | Pong) -> None:
        """Take a control frame, which does not wait for a task."""

    def after_protocol(self) -> None:
        """Do what follows from a call to the protocol that may have ended the open state."""

    def give_up(self) -> None:
        """Fail the connection for its violation, now that what came before it has been answered."""


class _Nobody:
    """Whose an inbox is once its connection is lost, and would otherwise be left to the garbage collector."""

    def control_received(self, event: Ping | Pong) -> None: ...

    def after_protocol(self) -> None: ...

    def give_up(self) -> None: ...


_NOBODY = _Nobody()


class Inbox:
    """Takes what the transport brings, and has the messages that tasks have not taken yet."""

    __slots__ = (
        "_arrivals",
        "_catching_up",
        "_config",
        "_owes_a_turn",
        "_owner",
        "_paused_at",
        "_protocol",
        "_rate_limit",
        "_reading_paused",
        "_room",
        "_transport",
        "bytes_received",
        "listening_since",
        "messages",
        "messages_received",
        "peer_ended",
    )

    def __init__(
        self,
        owner: Owner,
        transport: Transport,
        protocol: WebSocketProtocol,
        config: Config,
    ) -> None:
        self.messages: deque[tuple[str | bytes, int]] | None = None
        """Each with its size in bytes; None where there is none, as most of the time: a deque takes 800 bytes."""
        self.messages_received = 0
        self.bytes_received = 0
        """All so far, taken or not."""
        self.peer_ended = False
        """Whether nothing more comes from the network."""
        self.listening_since = trio.current_time()
        """When it was last begun to take at once what comes."""
        self._owner: Owner = owner
        self._transport = transport
        self._protocol = protocol
        self._config = config
        self._rate_limit = None if config.limit_message_rate is None else RateLimit(config.limit_message_rate)
        self._room = config.inbox_bytes
        """For how many bytes more; negative where the last message has taken more than there was."""
        self._arrivals = Changes()
        """Of messages, or of the end of them."""
        self._reading_paused = False
        self._paused_at = 0.0
        self._catching_up = False
        self._owes_a_turn = False
        """Whether the task that receives next is to give way to others first."""

    # What tasks call that receive.

    @property
    def receiving(self) -> bool:
        """Whether a message may still come that is not here."""
        return self._protocol.receiving and not self._transport.lost

    def arrival(self) -> Awaitable[object]:
        """
        Wait, when awaited at once, until a message is there or none comes any more.

        Others may take it first, so this stands in a loop. A coroutine that held that loop for all who receive
        would take 3 % of what echoing a small message does.
        """
        if self.messages is None and self.receiving:
            self._transport.push()
            return self._arrivals.next()
        # Who had to wait has given way to others by that.
        return trio.lowlevel.checkpoint() if self._owes_a_turn else pace()  # noqa: ASYNC105 (as for `Changes.next`)

    def take(self) -> str | bytes | None:
        """Return the next message; None where there is none yet, or, no longer `receiving`, none any more."""
        self._owes_a_turn = False
        messages = self.messages
        if messages is None:
            if not self.receiving:
                # One task that receives has answered what came before when it comes for more.
                self._owner.give_up()
            return None
        message, size = messages.popleft()
        if not messages:
            self.messages = None
        self._room += size
        if self._reading_paused and not self._full:
            before = self._protocol.payload_received
            self._resume_reading()
            self._owes_a_turn = self._protocol.payload_received - before > PAYLOAD_PER_CALL
        return message

    # What the connection calls.

    @property
    def listening(self) -> bool:
        """Whether all that comes is taken at once."""
        return not self._reading_paused and not self._catching_up

    def data_received(self, data: bytes | memoryview) -> None:
        """Take bytes from the peer."""
        self._protocol.receive_data(data)
        try:
            self._take()
        finally:
            # Whatever goes wrong: what the memory holds next may be another connection's.
            if isinstance(data, memoryview):
                self._protocol.keep_data()

    def end_received(self) -> None:
        """Take note of the peer's end, behind what has come before it."""
        self.peer_ended = True
        self._take()

    def connection_lost(self) -> None:
        """Take what has come before the end, which is now, however much it is; tell the owner nothing more."""
        self.peer_ended = True
        self._excuse_the_pause()
        try:
            self._take_events(EVENTS_AT_THE_END, self._config.max_message_size, overfill=True)
            self._protocol.receive_eof()
        finally:
            self._owner = _NOBODY

    def announce(self) -> None:
        """Wake the tasks that receive: it may be that none comes any more."""
        self._arrivals.announce()

    def close(self) -> None:
        """Take no more messages, but see to it that the peer's close frame is seen."""
        if self._reading_paused:
            self._resume_reading()

    # How.

    def _take(self) -> bool:
        """
        Take what the peer's bytes make of messages, as far as there is room, and for one turn at most.

        The rest waits in the protocol until reading is resumed or the next turn comes, the peer's end behind it.
        Returns whether there is to be one.
        """
        caught_up = self._take_events(EVENTS_PER_TURN, PAYLOAD_PER_TURN)
        if caught_up and self.peer_ended:
            self._protocol.receive_eof()
        behind = not caught_up and not self._reading_paused
        if behind and not self._catching_up:
            self._catching_up = True
            self._transport.pause_reading()
            self._transport.start_soon(self._catch_up)
        if not self._protocol.receiving:
            self._owner.after_protocol()
        return behind

    def _take_events(self, most: int, payload: int, *, overfill: bool = False) -> bool:
        """Take so many events at most, until they have had so much payload; return whether there are no more."""
        protocol = self._protocol
        if self._rate_limit is None and not self._reading_paused:
            waiting = 0 if self.messages is None else len(self.messages)
            messages, size = protocol.next_messages(
                min(most, self._config.inbox_messages - waiting), min(payload, self._room)
            )
            if messages:
                self._put(messages, size)
                if not protocol.unread:
                    return not self._reading_paused
                most -= len(messages)
                payload -= size
                if payload <= 0:
                    return False
        enough = protocol.payload_received + payload
        for _ in range(most):
            if self._reading_paused and not overfill:
                return False
            event = protocol.next_event()
            if event is None:
                return True
            if event is not _INTERNAL:
                self._take_event(event)
            if protocol.payload_received >= enough:
                break
        return not protocol.unread and not self._reading_paused

    def _take_event(self, event: str | bytes | Ping | Pong) -> None:
        if self._rate_limit is not None and not self._rate_limit.allows(trio.current_time()):
            reason = f"more than {self._config.limit_message_rate} messages a second"
            self._protocol.fail(CloseCode.POLICY_VIOLATION, reason, Ending.PROTOCOL_ERROR)
        elif isinstance(event, (str, bytes)):
            # All that has come since the message before belongs to this one.
            size = self._protocol.payload_received - self.bytes_received
            self._put([(event, size)], size)
        else:
            self._owner.control_received(event)

    async def _catch_up(self) -> None:
        """Take what is there turn by turn, and nothing more from the network meanwhile."""
        while True:
            await trio.lowlevel.checkpoint()
            if not self._take():
                break
        self._catching_up = False
        self.listening_since = trio.current_time()
        if not self._reading_paused:
            self._transport.resume_reading()

    def _put(self, messages: list[tuple[str | bytes, int]], size: int) -> None:
        """Have messages wait, with their sizes in bytes, of which this is the sum."""
        self.messages_received += len(messages)
        self.bytes_received += size
        if self.messages is None:
            self.messages = deque(messages)
        else:
            self.messages.extend(messages)
        self._room -= size
        if self._full and not self._reading_paused:
            self._reading_paused = True
            self._paused_at = trio.current_time()
            self._transport.pause_reading()
        self._arrivals.announce()

    @property
    def _full(self) -> bool:
        return self._room <= 0 or (
            self.messages is not None and len(self.messages) >= self._config.inbox_messages
        )

    def _resume_reading(self) -> None:
        self._excuse_the_pause()
        self._reading_paused = False
        self.listening_since = trio.current_time()
        self._take()
        if not self._reading_paused and not self._catching_up:
            self._transport.resume_reading()

    def _excuse_the_pause(self) -> None:
        """Allow what the peer may have sent meanwhile."""
        if self._rate_limit is not None and self._reading_paused:
            self._rate_limit.excuse(trio.current_time() - self._paused_at)
