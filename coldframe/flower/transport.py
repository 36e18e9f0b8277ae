"""What every process that sends requests to a SuperLink or SuperNode changes in flwr: client and objects."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from coldframe.flower.changes import change, replace

PULL_BACKOFF = 0.05  # seconds before an object that is not there yet is asked for again; flwr: 1

_UTILS = "flwr.supercore.inflatable.inflatable_utils"


def apply() -> None:
    """Apply the changes that all senders share."""
    use_http_client()
    send_objects_in_batches()


@change(
    "flwr.supercore.protobuf.client:ProtobufClient",
    f"{_UTILS}:pull_objects",
    f"{_UTILS}:pull_and_inflate_object_from_tree",
)
def use_http_client() -> None:
    """Send requests with the standard library's HTTP client, see `http_client` for what httpx costs.

    And ask for a missing object again after PULL_BACKOFF.
    """
    from flwr.supercore.inflatable import inflatable_utils
    from flwr.supercore.protobuf.client import ProtobufClient

    from coldframe.flower.http_client import HttpClient

    def init(
        client: ProtobufClient,
        base_url: str,
        *,
        interceptors: Sequence[Any] = (),
        verify: Any = True,
        timeout: float = 30.0,
        retry_invoker: Any = None,
    ) -> None:
        client._base_url = base_url.rstrip("/")
        client._interceptors = tuple(interceptors)
        client._retry_invoker = retry_invoker
        vars(client)["_client"] = HttpClient(verify, timeout)

    replace(ProtobufClient, "__init__", init)
    for function in (inflatable_utils.pull_objects, inflatable_utils.pull_and_inflate_object_from_tree):
        replace(
            function, "__kwdefaults__", {**(function.__kwdefaults__ or {}), "initial_backoff": PULL_BACKOFF}
        )


@change(
    f"{_UTILS}:pull_objects",
    f"{_UTILS}:push_object_contents_from_iterable",
    "flwr.supercore.inflatable.inflatable_protobuf_utils:",
    "flwr.supercore.runtime.runtime_http_client:",
    "flwr.supernode.fleet_http_client:",
)
def send_objects_in_batches() -> None:
    """Send many objects in one request: flwr makes one for each object of a message, 2 to 5 ms each.

    The server checks a batch as it checks a single object, see `fast_path.batched`. flwr pushes objects with
    threads; here none is started, so that a client at its limit of pids can still report an error.
    """
    from flwr.supercore.inflatable import inflatable_utils
    from flwr.supercore.runtime import RuntimeHttpClient

    from coldframe.flower import object_batches

    flwr_pull_objects = inflatable_utils.pull_objects

    def pull_objects(
        object_ids: Iterable[str], pull_object_fn: Callable[[str], bytes], **limits: Any
    ) -> dict[str, bytes]:
        return object_batches.pull_objects(flwr_pull_objects, object_ids, pull_object_fn, **limits)

    def push_contents(
        object_contents: Iterable[tuple[str, bytes]], push_object_fn: Callable[[str, bytes], None], **_: Any
    ) -> None:
        object_batches.push_contents(object_contents, push_object_fn)

    def use_batches(client: type) -> None:
        pull, push = client.PullObject, client.PushObject  # type: ignore[attr-defined]
        replace(client, "PullObject", lambda it, request: object_batches.pull(it, pull, request))
        replace(client, "PushObject", lambda it, request: object_batches.push(it, push, request))

    use_batches(RuntimeHttpClient)
    replace(inflatable_utils, "pull_objects", pull_objects)
    replace(inflatable_utils, "push_object_contents_from_iterable", push_contents)
    # Modules that have imported the functions by name already; later ones get ours.
    if grid := sys.modules.get("flwr.superlink.grid.http_grid"):
        replace(grid, "pull_objects", pull_objects)
    if node := sys.modules.get("flwr.supernode.start_client_internal"):
        replace(node, "pull_objects", pull_objects)
        replace(node, "push_object_contents_from_iterable", push_contents)
        use_batches(sys.modules["flwr.supernode.fleet_http_client"].FleetHttpClient)
