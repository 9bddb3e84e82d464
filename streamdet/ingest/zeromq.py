"""Audio in over ZeroMQ: a PULL socket, read by the event loop. The live way in."""

import time
from typing import Final

import msgspec
import zmq

from streamdet.connections import Peer
from streamdet.engine import Engine
from streamdet.errors import OverloadError, ProtocolError
from streamdet.metrics import Metrics
from streamdet.pseudonyms import Named
from streamdet.sockets import ZmqSocket
from streamdet.wire import frames

# Frames that may wait for the loop, for each sender: 2 s of a call on a connection of its own. What comes on top waits
# in the kernel, then with the sender. One that came alone keeps libzmq's buffer of 8 kB, so this is 0.8 MB a sender:
# what a loop that is late may cost. With ten times as many a frame takes no less time, with a fifth half as much again.
RECEIVE_HWM: Final = 100
# At the end what has arrived is still taken, for nobody sends it again; but no longer than this: a sender that outruns
# us must not keep us, and the drain has seconds.
LAST_S: Final = 0.5


class AudioSocket(ZmqSocket):
    """Bound while entered."""

    def __init__(self, address: str, engine: Engine, metrics: Metrics, name: Named = str) -> None:
        """Feed `engine`, which knows streams by what `name` makes of their ids."""
        super().__init__(zmq.PULL, "endpoints.audio", address, self._take_message, rcvhwm=RECEIVE_HWM)
        self._engine = engine
        self._metrics = metrics
        self._name = name
        self._frames = self._bytes = 0
        """Taken in this turn."""

    async def __aexit__(self, *error: object) -> None:
        """Take what has arrived; stop reading."""
        self._take_the_last()
        await super().__aexit__(*error)

    def _take_the_last(self) -> None:
        """Take messages until none is there."""
        until_s = time.monotonic() + LAST_S
        try:
            while time.monotonic() < until_s:
                self._take_one()
        except zmq.Again:
            pass
        self._turn_over()

    def _left(self, peer: Peer) -> None:
        """A message over MESSAGE_MAX_BYTES ends its connection inside the library; this is all that we hear of it."""
        super()._left(peer)
        self._metrics.disconnected("zeromq")

    def _take_message(self, parts: list[bytes]) -> None:
        now_s = time.monotonic()
        try:
            frame = frames.parse(parts)
            if self._name is not str:
                frame = msgspec.structs.replace(frame, stream=self._name(frame.stream))
            transit_s = None if frame.sent_at_s is None else time.time() - frame.sent_at_s
            self._engine.feed(frame, now_s, transit_s=transit_s, owner=self.client)
        except (ProtocolError, OverloadError) as error:
            self._metrics.refused("zeromq", error)
            if (stream := frames.stream_of(parts)) is not None:
                self._engine.error(self._name(stream), str(error), now_s, owner=self.client)
        else:
            self._frames += 1
            self._bytes += len(frame.payload)
        finally:
            _wipe(parts[-1])

    def _last_part(self, part: zmq.Frame) -> bytes:
        """Leave the audio where the library has it: no copy but the ring's, and one that can be overwritten."""
        return part.buffer  # type: ignore[return-value] # a view; frames.parse and the engine take it for bytes

    def _turn_over(self) -> None:
        if self._frames:
            self._metrics.received("zeromq", self._bytes, self._frames)
            self._frames = self._bytes = 0


def _wipe(part: bytes) -> None:
    """Overwrite a message's audio in the library's memory, which holds on to it as long as its sender is connected."""
    if isinstance(part, memoryview) and not part.readonly:
        part[:] = bytes(len(part))
