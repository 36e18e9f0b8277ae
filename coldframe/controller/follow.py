"""The shell text that runs a command detached and reads its output; the lines and the bar that show it."""

from __future__ import annotations

import base64
import json
import re
import shlex
import sys
from collections.abc import Callable

from coldframe.controller.terminal import plain

# Ansible's strategy loads the actions in the main process, before it forks the worker that runs one. A worker
# has no terminal, so whether there is one is found out here.
ON_TERMINAL = sys.stdout.isatty()

INDENT = "    "
BAR_MARK = "\x1e"
BAR_WIDTH = 24
CHUNK = 49152  # bytes of output fetched at once
HOLD = 10  # seconds that one poll waits on the target for new output; it looks every half second
PATIENCE = 120  # seconds without a connection before the machine is given up; the command runs on meanwhile
GONE = {
    "lost": "the command is gone from the machine without an exit code: killed, or a restart",
    "unreachable": f"the machine has not answered for {PATIENCE} s; the command runs on there",
}
TAIL = 20  # lines of output repeated in a failure's message

# The command's own shell. Its end is written under another name first: a reader never sees half of it.
WRAPPER = """\
echo $$ >"$1/pid"
{environment}/bin/sh -c {command}
echo $? >"$1/end.new"
mv "$1/end.new" "$1/end"
"""

# setsid takes the command out of the connection's session: a lost connection or a killed controller does not
# end it.
START = """\
cd {chdir} || exit 1
if [ -n {creates} ] && [ -e {creates} ]; then echo FOLLOW-EXISTS; exit 0; fi
d=$(mktemp -d "${{TMPDIR:-/tmp}}/coldframe-follow.XXXXXX") || exit 1
: >"$d/log"
setsid /bin/sh -c {wrapper} follow "$d" </dev/null >"$d/log" 2>&1 &
while [ ! -s "$d/pid" ]; do sleep 0.05; done
echo "FOLLOW-STARTED $d"
"""

# The state is read before the log, so that the log of an ended command is whole. Base64 survives a terminal.
# What has just written something may be about to end: at first it is looked at more often.
POLL = """\
d={directory}; i=0; state=running
while :; do
  if [ -e "$d/end" ]; then state=$(cat "$d/end"); break; fi
  if ! kill -0 "$(cat "$d/pid")" 2>/dev/null; then
    if [ -e "$d/end" ]; then state=$(cat "$d/end"); else state=lost; fi
    break
  fi
  size=$(wc -c <"$d/log")
  if [ "$size" -gt {offset} ] || [ "$i" -ge {looks} ]; then break; fi
  i=$((i + 1))
  if [ "$i" -le 5 ]; then sleep 0.1; else sleep 0.5; fi
done
printf 'FOLLOW-STATE %s ' "$state"
tail -c +{start} "$d/log" 2>/dev/null | head -c {chunk} | base64 -w0
echo .
"""


class Output:
    """Cuts a stream of bytes into lines; shows them, and draws bar updates over one another on a terminal.

    Parameters
    ----------
    show : callable
        Writes text to the user's screen as it is, without adding a newline.
    label : str
        Put before each line.
    terminal : bool
        Whether the screen can overwrite a line; bar updates are dropped where it cannot.
    columns : int
        Width of the screen in characters.
    quiet : bool
        Whether the bar is all that is shown.
    """

    def __init__(
        self,
        show: Callable[[str], None],
        label: str = "",
        terminal: bool = False,
        columns: int = 79,
        quiet: bool = False,
    ) -> None:
        self.lines: list[str] = []
        self._quiet = quiet
        self._show = show
        self._prefix = INDENT + (f"{label}: " if label else "")
        self._terminal = terminal
        self._columns = columns
        self._rest = b""
        self._bar = ""

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line)

    def close(self) -> None:
        """Take what is left as a line, and clear the bar."""
        if self._rest:
            self._line(self._rest)
        self._rest = b""
        if self._bar:
            self._show("\r\x1b[K")
            self._bar = ""

    def _line(self, raw: bytes) -> None:
        text = raw.decode("utf-8", errors="replace").rstrip("\r")
        if text.startswith(BAR_MARK):
            self._draw(text[len(BAR_MARK) :])
            return
        text = plain(text.rsplit("\r", 1)[-1])  # of a tool's progress line: what a terminal shows in the end
        self.lines.append(text)
        if self._quiet or _is_json_object(text):
            return  # an answer for the playbook, not for people
        clear = "\r\x1b[K" if self._bar else ""
        self._show(f"{clear}{self._prefix}{text}".rstrip() + "\n" + self._bar)

    def _draw(self, update: str) -> None:
        if not self._terminal:
            return
        try:
            progress = json.loads(plain(update))
            done, total, text = (
                float(progress["done"]),
                float(progress["total"]),
                plain(str(progress.get("text", ""))).replace("\n", " "),
            )
        except (ValueError, KeyError, TypeError):
            return  # a torn update: the next one replaces it
        share = min(max(done / total, 0.0), 1.0) if total > 0 else 0.0
        filled = round(share * BAR_WIDTH)
        bar = f"{self._prefix}[{'=' * filled}{' ' * (BAR_WIDTH - filled)}] {share:4.0%}  {text}"
        self._bar = "\r" + bar[: self._columns] + "\x1b[K"
        self._show(self._bar)


def _is_json_object(text: str) -> bool:
    try:
        return text.startswith("{") and isinstance(json.loads(text), dict)
    except ValueError:
        return False


def start_script(command: str, chdir: str, creates: str, environment: str) -> str:
    """The shell text that starts the command, and prints where its files are."""
    prefix = f"{environment} " if environment.strip() else ""
    wrapper = WRAPPER.format(environment=prefix, command=shlex.quote(command))
    return START.format(
        chdir=shlex.quote(chdir), creates=shlex.quote(creates), wrapper=shlex.quote(wrapper)
    ).strip()  # Ansible appends "&& ..." to what it is given


def poll_script(directory: str, offset: int) -> str:
    """The shell text that waits for output beyond `offset` bytes or for the end, and prints both."""
    return POLL.format(
        directory=shlex.quote(directory), offset=offset, start=offset + 1, looks=HOLD * 2, chunk=CHUNK
    ).strip()


def read_poll(stdout: str) -> tuple[str, bytes] | None:
    """The state ("running", "lost" or an exit code) and the new bytes; None if the answer is not whole."""
    found = re.search(r"FOLLOW-STATE (\S+) (\S*)\.\s*$", stdout)
    return (found[1], base64.b64decode(found[2])) if found else None


def last(lines: list[str]) -> str:
    """Return the lines that tell why a command failed."""
    return "\n".join(lines[-TAIL:]) or "(it wrote nothing)"
