"""A hostile client, as a program: a SuperNode with a registered key that also sends what it must not.

`python -m tests.unit.hostile REPORT ARGUMENTS` is flwr's own SuperNode with these arguments. Before its first
reply it sends forged ones and objects that nobody asked for, and writes to REPORT what it was answered. What
its ClientApp replies is the app's affair: see test_hostile_client.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supernode.fleet_http_client import FleetHttpClient

from coldframe.flower import adapters, object_batches

MB = 1 << 20
UNASKED = 16  # objects of 16 MB that belong to no message


def forgeries(request: PushMessagesRequest, other: int) -> dict[str, PushMessagesRequest]:
    """Return what a reply can be made into."""
    found = {name: PushMessagesRequest() for name in ("second item", "to another node", "in another's name")}
    for forged in found.values():
        forged.CopyFrom(request)
    second = found["second item"].messages_list.add()
    second.CopyFrom(request.messages_list[0])
    second.metadata.src_node_id = other
    found["second item"].message_object_trees.add().CopyFrom(request.message_object_trees[0])
    found["to another node"].messages_list[0].metadata.dst_node_id = other
    found["in another's name"].messages_list[0].metadata.src_node_id = other
    found["in another's name"].node.node_id = other
    return found


def answered(call: Callable[[], Any]) -> int:
    """Return the status that a call is answered with."""
    try:
        call()
    except httpx.HTTPStatusError as error:
        return error.response.status_code
    return 200


def attack(client: FleetHttpClient, request: PushMessagesRequest, push: Any) -> dict[str, int]:
    """Send all of it; return the statuses."""
    metadata = request.messages_list[0].metadata
    other = metadata.src_node_id ^ 1
    statuses = {
        name: answered(lambda forged=forged: push(client, forged))  # type: ignore[misc]
        for name, forged in forgeries(request, other).items()
    }
    theirs = PullMessagesRequest(node=Node(node_id=other))
    statuses["another's messages"] = answered(lambda: client.PullMessages(theirs))
    content = bytes(16 * MB)
    for number in range(UNASKED):
        item = PushObjectRequest(
            node=request.node, run_id=metadata.run_id, object_id=f"{number:064x}", object_content=content
        )
        statuses["objects of no message"] = answered(lambda item=item: client.PushObject(item))  # type: ignore[misc]
    empty = object_batches.PushRequests(PushObjectRequest() for _ in range(object_batches.MAX_ITEMS + 1))
    statuses["a batch of nothing"] = answered(
        lambda: object_batches._ask(
            client, "push-object-batch", "PushObjectBatch", empty, object_batches.PushAnswers
        )
    )
    return statuses


def main() -> None:
    """Run the SuperNode."""
    report = Path(sys.argv.pop(1))
    push = FleetHttpClient.PushMessages

    def push_and_attack(client: FleetHttpClient, request: PushMessagesRequest) -> Any:
        if not report.exists():
            begin = time.monotonic()
            statuses = attack(client, request, push)
            report.write_text(json.dumps({**statuses, "seconds": round(time.monotonic() - begin, 2)}))
        return push(client, request)

    setattr(FleetHttpClient, "PushMessages", push_and_attack)  # noqa: B010 - mypy allows no other way
    adapters.run("supernode")


if __name__ == "__main__":
    main()
