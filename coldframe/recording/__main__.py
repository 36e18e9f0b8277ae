"""Runs flwr's own `flwr-serverapp` or `flwr-clientapp` with the recording beneath it.

In the image two scripts of those names, first on PATH, run it: so it is there under `fl_runtime=stock`, too.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command that the first argument names, on the other arguments."""
    process = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    sys.argv[0] = f"flwr-{process}"
    if process == "serverapp":
        from coldframe.recording import server

        server.main()
    elif process == "clientapp":
        from coldframe.recording import client

        client.main()
    else:
        sys.exit(f"usage: python -m coldframe.recording serverapp|clientapp ARGS (not {process!r})")


if __name__ == "__main__":
    main()
