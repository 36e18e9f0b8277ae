#!/usr/bin/env python3
"""Stands in for Grafana: reads all that Grafana would, and answers with what it read.

It tests how the image is loaded and what the container gets, not Grafana. Called `curl` it is that command.
"""

from __future__ import annotations

import http.server
import json
import os
import ssl
import sys
import urllib.request
from pathlib import Path


def curl(arguments: list[str]) -> int:
    """Do what the health check asks of curl."""
    authority = arguments[arguments.index("--cacert") + 1]
    context = ssl.create_default_context(cafile=authority)
    with urllib.request.urlopen(arguments[-1], context=context, timeout=3) as answer:
        return 0 if answer.status == 200 else 22


def content(path: str) -> str:
    """Read a file as the container's user."""
    return Path(path).read_text(encoding="utf-8")


def seen() -> str:
    """Tell what it was given."""
    environment = {name: value for name, value in os.environ.items() if name.startswith("GF_")}
    provisioning = Path(environment["GF_PATHS_PROVISIONING"])
    Path(environment["GF_PATHS_DATA"], "grafana.db").touch()
    return json.dumps(
        {
            "environment": environment,
            "user": os.getuid(),
            "admin": content(environment["GF_SECURITY_ADMIN_PASSWORD__FILE"]),
            "home": json.loads(content(environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]))["title"],
            "files": {str(path): content(str(path)) for path in provisioning.rglob("*.yml")},
        }
    )


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers every path alike."""

    def do_GET(self) -> None:
        """Answer what was given to the container."""
        body = seen().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: the health check comes every few seconds."""


def main() -> None:
    """Serve over TLS with the certificate that the environment names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(os.environ["GF_SERVER_CERT_FILE"], os.environ["GF_SERVER_CERT_KEY"])
    server = http.server.ThreadingHTTPServer(("", int(os.environ["GF_SERVER_HTTP_PORT"])), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    if Path(sys.argv[0]).name == "curl":
        sys.exit(curl(sys.argv[1:]))
    main()
