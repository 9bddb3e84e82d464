"""Verdicts, events, notices, heartbeats as ZeroMQ messages: `[topic][json]`. docs/wire.md has the format for users."""

from collections.abc import Sequence
from typing import Final

import msgspec

from streamdet.errors import ProtocolError
from streamdet.records import Event, Heartbeat, Notice, Verdict

HEARTBEAT_TOPIC: Final = "hb"
NOTICE_TOPIC: Final = "daemon"

Record = Verdict | Event | Notice | Heartbeat

_KINDS: Final[dict[str, type[Record]]] = {"v": Verdict, "e": Event, "d": Notice, "h": Heartbeat}


def topic(record: Record) -> str:
    """`v.<stream>.<channel>`, `e.<stream>`, `daemon` or `hb`."""
    if isinstance(record, Verdict):
        return f"v.{record.stream}.{record.channel}"
    if isinstance(record, Event):
        return f"e.{record.stream}"
    return NOTICE_TOPIC if isinstance(record, Notice) else HEARTBEAT_TOPIC


def build(record: Record) -> list[bytes]:
    """Write a message."""
    return [topic(record).encode(), msgspec.json.encode(record)]


def parse(parts: Sequence[bytes]) -> Record:
    """Read a message; fields that this version does not know are ignored.

    Raises:
        ProtocolError: it is not one of ours.
    """
    if len(parts) != 2:
        raise ProtocolError.of("message parts", len(parts), "2: topic, JSON")
    kind = _KINDS.get(bytes(parts[0][:1]).decode("latin-1"))
    if kind is None:
        raise ProtocolError.of("topic", bytes(parts[0]), "v.<stream>.<channel>, e.<stream>, daemon or hb")
    try:
        return msgspec.json.decode(parts[1], type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError.of("message", bytes(parts[1]), f"the JSON of {kind.__name__} ({error})") from None
