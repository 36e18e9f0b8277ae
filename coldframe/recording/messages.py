"""What a message says of itself: its round and its size."""

from __future__ import annotations

import re
from contextlib import suppress

from flwr.app import Message


def told_round(message: Message) -> int | None:
    """Return the round that a message names: in a config, or as a number for its group; from 1."""
    for record in message.content.config_records.values():
        value = record.get("server-round")
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    group = message.metadata.group_id
    return int(group) if re.fullmatch(r"[1-9]\d{0,8}", group) else None


def size_of(message: Message) -> int:
    """Return the bytes of a message's records."""
    if not message.has_content():
        return 0
    total = 0
    for record in message.content.values():
        with suppress(IndexError):  # flwr cannot count a list of nothing
            total += record.count_bytes()
    return total
