"""Has a reply that cannot be read become an error of its sender's, in the process of the ServerApp.

Flower reads a reply from objects that the client made. Nor is it what it says that it is: whom it answers and
who sends it was checked by the SuperLink, for the message, not for the object.
"""

from __future__ import annotations

from typing import Any

from flwr.app import Error, Message, Metadata, RecordDict
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.date import now

from coldframe.recording.replies import BAD_REPLY, clean

NAMES = ("run_id", "src_node_id", "dst_node_id", "reply_to_message_id")


def verified(message: object, said: Any) -> Message:
    """Return what was read, if it is the message that the SuperLink was told."""
    if not isinstance(message, Message):
        raise TypeError(f"it is a {type(message).__name__}")
    if [getattr(message.metadata, name) for name in NAMES] != [getattr(said, name) for name in NAMES]:
        raise ValueError("it says that it is another message")
    if not message.has_error() and not isinstance(message.content, RecordDict):
        raise TypeError(f"its content is a {type(message.content).__name__}")
    return message


def refusal(message_id: str, said: Any, error: Exception) -> Message:
    """Return the error that stands for a reply; nothing of it is taken but what the SuperLink has checked."""
    from flwr.superlink.grid.http_grid import make_message

    metadata = Metadata(
        message_id=message_id,
        message_type=SYSTEM_MESSAGE_TYPE,
        group_id="",
        ttl=0,
        created_at=now().timestamp(),
        **{name: getattr(said, name) for name in NAMES},
    )
    reason = clean(f"the reply cannot be read: {error}")
    return make_message(metadata=metadata, error=Error(code=BAD_REPLY, reason=reason))


def install() -> None:
    """Put the check between flwr's grid and the function that it reads replies with."""
    from flwr.supercore.runtime import RuntimeHttpClient
    from flwr.superlink.grid import http_grid

    inflate, pull = http_grid.inflate_object_from_contents, RuntimeHttpClient.PullMessages
    checked: dict[str, Any] = {}  # what the SuperLink says of messages that are not read yet

    def pull_messages(client: RuntimeHttpClient, request: Any) -> Any:
        response = pull(client, request)
        checked.update((item.metadata.message_id, item.metadata) for item in response.messages_list)
        return response

    def inflate_or_refuse(message_id: str, contents: dict[str, bytes]) -> Message:
        said = checked.pop(message_id)
        try:
            return verified(inflate(message_id, contents), said)
        except Exception as error:  # whatever a client sends
            return refusal(message_id, said, error)

    vars(http_grid)["inflate_object_from_contents"] = inflate_or_refuse
    setattr(RuntimeHttpClient, "PullMessages", pull_messages)  # noqa: B010 - mypy allows no other way
