"""Runs flwr's own `flwr-serverapp` or `flwr-clientapp` with the recording beneath it.

In the image two scripts of those names, first on PATH, run it: so it is there under `fl_runtime=stock`, too.
"""

from __future__ import annotations

import sys

from coldframe.recording import process, threads


def serverapp() -> None:
    """Run flwr's own `flwr-serverapp`; what is imported here is only in the app's process."""
    from coldframe.recording import server

    server.main()


def clientapp() -> None:
    """Run flwr's own `flwr-clientapp`."""
    from coldframe.recording import client

    client.main()


def main() -> None:
    """Run the command that the first argument names, on the other arguments."""
    command = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    sys.argv[0] = f"flwr-{command}"
    threads.apply()  # before numpy is imported
    if command == "serverapp":
        process.serverapp(serverapp)
    elif command == "clientapp":
        process.clientapp(clientapp)
    else:
        sys.exit(f"usage: python -m coldframe.recording serverapp|clientapp ARGS (not {command!r})")


if __name__ == "__main__":
    main()
