"""After a restart of the server no client counts as connected until it says so again."""

from __future__ import annotations

from pathlib import Path

from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager

from coldframe.server import forget_presence


def test_a_restart_forgets_who_was_online_and_a_heartbeat_brings_it_back(tmp_path: Path) -> None:
    """With Flower's own database."""
    database = tmp_path / "superlink.db"
    state = LinkStateFactory(str(database), NoOpFederationManager(), ObjectStoreFactory()).state()
    nodes = [state.create_node("", "", bytes([i]), 30.0, name=f"c1-{i}") for i in range(3)]
    for node in nodes[:2]:
        assert state.activate_node(node, 30.0)

    def online() -> set[int]:
        return {node.node_id for node in state.get_node_info(statuses=["online"])}

    assert online() == set(nodes[:2])
    forget_presence(database)
    assert online() == set()
    assert {node.status for node in state.get_node_info(node_ids=nodes[2:])} == {"registered"}
    assert state.acknowledge_node_heartbeat(nodes[0], 30.0)
    assert online() == {nodes[0]}


def test_a_server_that_never_ran_has_nothing_to_forget(tmp_path: Path) -> None:
    """No database, or one that Flower has not filled yet."""
    database = tmp_path / "superlink.db"
    forget_presence(database)
    assert not database.exists()
    database.touch()
    forget_presence(database)
