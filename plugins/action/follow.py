"""Runs a long command detached on the target and shows its lines live while it runs."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible.utils.vars import load_extra_vars

sys.path.append(str(Path(__file__).resolve().parents[2]))  # Ansible loads plugins by path, not as a package

from coldframe.controller.commands import complete
from coldframe.controller.terminal import plain

display = Display()

# Ansible's strategy loads this file in the main process, before it forks the worker that runs the action. A
# worker has no terminal, so whether there is one is found out here; and a pipe is buffered by blocks, which
# would hold the lines back until the task ends.
ON_TERMINAL = sys.stdout.isatty()
if hasattr(sys.stdout, "reconfigure"):
    sys.stdout.reconfigure(line_buffering=True)

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
  i=$((i + 1)); sleep 0.5
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
    """

    def __init__(
        self, show: Callable[[str], None], label: str = "", terminal: bool = False, columns: int = 79
    ) -> None:
        self.lines: list[str] = []
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
        if _is_json_object(text):
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


class ActionModule(ActionBase):
    """Start, poll, show, clean up."""

    _supports_check_mode = True
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        _spec, args = self.validate_argument_spec(
            {
                "cmd": {"type": "raw", "required": True},
                "chdir": {"type": "str", "default": "."},
                "creates": {"type": "str", "default": ""},
                "label": {"type": "str", "default": ""},
                "changed": {"type": "bool", "default": True},
                "hint": {"type": "str", "default": ""},
            }
        )
        command = (
            args["cmd"] if isinstance(args["cmd"], str) else shlex.join(str(word) for word in args["cmd"])
        )
        if self._task.check_mode:
            return {**result, "skipped": True, "changed": False, "msg": f"check mode: would run {command}"}

        directory = self._begin(
            start_script(command, args["chdir"], args["creates"], self._compute_environment_string())
        )
        if directory is None:
            return {
                **result,
                "changed": False,
                "rc": 0,
                "stdout_lines": [],
                "msg": f"{args['creates']} is there",
            }

        if args["hint"]:
            self._show(f"{INDENT}{complete(args['hint'], load_extra_vars(self._loader))}\n")
        output = Output(
            show=(lambda text: None) if self._task.no_log else self._show,
            label=args["label"],
            terminal=ON_TERMINAL,
            columns=display.columns or 79,
        )
        state = self._watch(directory, output)
        if state in GONE:  # not raised: Ansible does not ask `failed_when` about what is raised
            message = f"{GONE[state]}. Its last lines:\n{_tail(output.lines)}"
            return {**result, "failed": True, "changed": args["changed"], "msg": message}
        # A machine that goes down ends the command first: what became of it is known by then.
        with contextlib.suppress(AnsibleConnectionFailure):
            self._low_level_execute_command(f"rm -rf -- {shlex.quote(directory)}")
        rc = int(state)
        if rc != 0:
            # All lines were shown while they came: here the last ones, which tell why.
            message = f"the command ended with exit code {rc}. Its last lines:\n{_tail(output.lines)}"
            return {**result, "failed": True, "changed": args["changed"], "rc": rc, "msg": message}
        return {**result, "changed": args["changed"], "rc": rc, "stdout_lines": output.lines}

    @staticmethod
    def _show(text: str) -> None:
        display.display(text, newline=False)

    def _begin(self, script: str) -> str | None:
        answer = self._low_level_execute_command(script)
        if "FOLLOW-EXISTS" in answer["stdout"]:
            return None
        found = re.search(r"FOLLOW-STARTED (\S+)", answer["stdout"])
        if answer["rc"] != 0 or not found:
            raise AnsibleActionFail(
                f"the command could not be started: {answer['stdout']}{answer['stderr']}".strip()
            )
        return found[1]

    def _watch(self, directory: str, output: Output) -> str:
        """Show what the command writes until it has ended; its last state."""
        offset, controller, heard = 0, os.getppid(), time.monotonic()
        while True:
            if os.getppid() != controller:
                raise AnsibleActionFail("ansible-playbook is gone: nobody follows the command any more")
            try:
                answer = self._low_level_execute_command(poll_script(directory, offset))
                polled = read_poll(answer["stdout"])
            except AnsibleConnectionFailure:
                if time.monotonic() - heard > PATIENCE:
                    return "unreachable"
                polled = None
            if polled is None:
                if time.monotonic() - heard > PATIENCE:
                    raise AnsibleActionFail(
                        f"the command's output cannot be read: {answer['stdout']}{answer['stderr']}"
                    )
                time.sleep(2)
                continue
            heard = time.monotonic()
            state, data = polled
            offset += len(data)
            output.feed(data)
            if state != "running" and len(data) < CHUNK:
                output.close()
                return state


def _tail(lines: list[str]) -> str:
    return "\n".join(lines[-TAIL:]) or "(it wrote nothing)"
