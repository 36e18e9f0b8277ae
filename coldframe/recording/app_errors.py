"""Say in one line why an app failed: which client, what was raised, and where in the app."""

from __future__ import annotations

import re
import signal
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

LONGEST = 400  # characters of a reason
# What flwr puts before a ServerApp's exception in the details of a run.
FLWR_PREFIX = "ServerApp failed with exception: "
OUT_OF_MEMORY = "out of memory (OOM): the kernel killed its process at the {}'s memory limit"
_CANNOT_LOAD = ("LoadClientAppError", "LoadServerAppError")
_FLWR_REASON = re.compile(r"<class '(?:[\w.<>]*\.)?(\w+)'>:<'(.*)'>", re.DOTALL)


class AppError(RuntimeError):
    """A run's failure whose message is made for people; it is raised from what the ServerApp raised."""


def ending(code: int, oom: bool, container: str = "client") -> str:
    """Say how a process ended: its exit status, or minus the number of the signal that killed it.

    Parameters
    ----------
    oom : bool
        The kernel has meanwhile killed a process of this container for want of memory.
    container : str
        `client` or `server`.
    """
    if code >= 0:
        missing = "reply" if container == "client" else "result"
        return f"its process ended with exit status {code} and no {missing}"
    if oom and -code == signal.SIGKILL:
        return OUT_OF_MEMORY.format(container)
    with suppress(ValueError):  # real-time signals have no names
        return f"its process was killed by {signal.Signals(-code).name}"
    return f"its process was killed by signal {-code}"


def describe(error: BaseException, apps: Path) -> str:
    """Return exception and message of an app's error, and the app's line that it came from.

    Parameters
    ----------
    error : BaseException
        flwr's error about an app that it could not load is replaced by its cause.
    apps : Path
        The directory below which the app is installed; lines of other files are not named.

    Examples
    --------
    >>> describe(ValueError("two\\n lines"), Path("/nowhere"))
    'ValueError: two lines'
    """
    while type(error).__name__ in _CANNOT_LOAD and error.__cause__ is not None:
        error = error.__cause__
    text = one_line(str(error))
    where = _line_in_app(error, apps)
    if isinstance(error, SyntaxError) and where:
        text = one_line(str(error.msg))
    return f"{type(error).__name__}{': ' if text else ''}{text}" + (f" (in {where})" if where else "")


def _line_in_app(error: BaseException, apps: Path) -> str:
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno))
    inside = [place for place in places if Path(place[0]).is_relative_to(apps)]
    return f"{Path(inside[-1][0]).name} line {inside[-1][1]}" if inside else ""


def one_line(text: str, longest: int = LONGEST) -> str:
    """Return a text as one line that a terminal can show: no control characters, and not too long.

    >>> one_line("a\\x1b[31mb\\n c")
    'a[31mb c'
    """
    shown = "".join(char for char in " ".join(text.split()) if char.isprintable())
    return shown if len(shown) <= longest else shown[: longest - 3] + "..."


def readable(reason: str) -> str:
    """Return the reason of an error reply as `describe` has it, also where stock flwr wrote it.

    >>> readable("<class 'builtins.ZeroDivisionError'>:<'division by zero'>")
    'ZeroDivisionError: division by zero'
    """
    found = _FLWR_REASON.fullmatch(reason.strip())
    return one_line(f"{found[1]}: {found[2]}" if found else reason)


class ClientErrors:
    """The clients whose last reply was an error, and how many of the others have replied."""

    def __init__(self) -> None:
        self.reasons: dict[int, str] = {}
        self._asked: dict[str, int] = {}  # node by message
        self._well: set[int] = set()

    def sent(self, message_id: str, node_id: int) -> None:
        """Note a message: an error for a lost node names the SuperLink as its source."""
        self._asked[message_id] = node_id

    def replied(self, message_id: str, source: int, reason: str | None) -> None:
        """Note a reply, with the reason if it is an error."""
        node_id = self._asked.pop(message_id, source)
        if reason is None:
            self._well.add(node_id)
            self.reasons.pop(node_id, None)
        else:
            self._well.discard(node_id)
            self.reasons[node_id] = readable(reason)

    def explain(self, own: str, names: Mapping[int, str]) -> str:
        """Return why a run failed: the clients first where all of them did, else the ServerApp.

        Parameters
        ----------
        own : str
            What the ServerApp raised.
        names : mapping
            The clients' names by node.
        """
        if not self.reasons:
            return f"ServerApp: {own}"
        clients: dict[str, list[str]] = {}
        for node_id, reason in self.reasons.items():
            clients.setdefault(reason, []).append(names.get(node_id, f"node-{node_id}"))
        theirs = "; ".join(f"{', '.join(sorted(who))}: {reason}" for reason, who in clients.items())[:2000]
        if self._well:
            return f"ServerApp: {own}. Clients that failed before: {theirs}"
        return f"{theirs}. After that the ServerApp failed: {own}"
