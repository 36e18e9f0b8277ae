"""The module talks to a real agent over its socket; a file of its own, since it imports Ansible."""

from __future__ import annotations

import threading
from pathlib import Path

from test_agent import Bench, bench  # noqa: F401 (a fixture)

from coldframe.agent import Server
from plugins.modules.client_limits import ask


def test_socket_answers_a_line_with_a_line(
    bench: Bench,  # noqa: F811
    tmp_path: Path,
) -> None:
    path = tmp_path / "s"
    server = Server(path, bench.agent)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        assert oct(path.stat().st_mode)[-3:] == "600"
        answer = ask(str(path), {"do": "status"}, 5)
        assert answer["clients"]["a"]["holds"]
        assert "knows set" in ask(str(path), {"do": "dance"}, 5)["error"]
        assert "cannot be read" in ask(str(path), {"do": "set"}, 5)["error"]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
