"""Opens the connection from the `flwr` command on the controller to the server's Control API."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from ansible import constants as C
from ansible.errors import AnsibleActionFail
from ansible.module_utils.common.text.converters import to_text
from ansible.plugins.action import ActionBase

from coldframe.controller.connection import ConnectionFailed, open_connection

RELAY = ("python3", "-m", "coldframe.server.relay")


class ActionModule(ActionBase):
    """Finds out by which command the server's container is reached, and leaves the rest to a process of the
    user's own."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Open the connection, or find it open."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _spec, args = self.validate_argument_spec(
            {
                "container": {"type": "str", "required": True},
                "directory": {"type": "path", "required": True},
                "name": {"type": "str", "required": True},
            }
        )
        if self._task.check_mode:
            return {**result, "skipped": True, "changed": False}
        command, answer = self._command(["docker", "exec", "--interactive", args["container"], *RELAY])
        try:
            state = open_connection(Path(args["directory"]), args["name"], command, answer)
        except (ConnectionFailed, OSError) as error:
            return {**result, "failed": True, "changed": False, "msg": f"No connection: {error}"}
        proxied = any(map(variable, ("HTTPS_PROXY", "ALL_PROXY")))
        return {**result, **state, "proxied": proxied and "127.0.0.1" not in variable("NO_PROXY")}

    def _command(self, words: list[str]) -> tuple[list[str], str]:
        """Return the command that runs ``words`` on the machine as Ansible would, and what sudo is told.

        Raises
        ------
        AnsibleActionFail
            If the machine is reached in a way that another process cannot repeat.
        """
        connection = self._connection
        text, answer = shlex.join(words), ""
        become = connection.become
        if become and not self._is_same_user():
            answer = str(become.get_option("become_pass", playcontext=self._play_context) or "")
            text = become.build_become_command(text, connection._shell)
            # Ansible's mark is another one each time, and the same command finds the connection that is open.
            text = text.replace(become._id, "coldframe")
        if connection.transport == "local":
            return ["/bin/sh", "-c", text], answer
        if connection.transport != "ssh":
            raise AnsibleActionFail(f"connect.yml knows ssh and local, and not {connection.transport}")
        if connection.get_option("password"):
            raise AnsibleActionFail(
                "this machine is reached with an SSH password, which another process would have to know: "
                "give it a key (ssh-copy-id), and leave ansible_password out"
            )
        connection.host = connection.get_option("host") or self._play_context.remote_addr
        ssh = connection._build_command(
            connection.get_option("ssh_executable"), "ssh", "-T", "-o", "BatchMode=yes", connection.host, text
        )
        return [to_text(word) for word in ssh], answer

    def _is_same_user(self) -> bool:
        """Whether there is nobody else to become."""
        user = self.get_become_option("become_user") or "root"
        if self._connection.transport == "local":
            return user == "root" and os.geteuid() == 0
        return not C.BECOME_ALLOW_SAME_USER and user == self._get_remote_user()


def variable(name: str) -> str:
    """Return a variable of the environment that programs read in capitals or in small letters."""
    return os.environ.get(name) or os.environ.get(name.lower()) or ""
