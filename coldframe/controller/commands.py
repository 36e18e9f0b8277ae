"""The commands that messages offer, so that they can be pasted as they stand."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible import constants as C
from ansible import context

from coldframe.controller.settings import EARLIER, INVENTORY, RUN, VERBS
from coldframe.controller.terminal import ansible_playbook

# What was typed and is no part of what stands belongs to the next verb too.
ADDRESSING = ("fl_federation", "fl_results_dir")
# A command in a message, with what follows it up to the next one.
_OFFER = re.compile(
    rf"(?<![\w/.-])ansible-playbook (?P<verb>(?:{'|'.join(VERBS)})\.yml)"
    r"(?P<rest>(?:(?!ansible-playbook )[^\n`])*)"
)


def complete(text: str, extra: Mapping[str, Any]) -> str:
    """Give every command that a text offers what this call was typed with to address its federation.

    Parameters
    ----------
    extra : mapping
        The variables of this call's ``-e``.
    """
    program = ansible_playbook()

    def fill(offer: re.Match[str]) -> str:
        rest, needed = offer["rest"], addressing(extra, offer["verb"])
        more = [words for words in needed if f" {words.partition('=')[0]}" not in rest]
        return " ".join([program, offer["verb"], *more]) + rest

    return _OFFER.sub(fill, text)


def addressing(extra: Mapping[str, Any], verb: str = "") -> list[str]:
    """What was typed besides the verb that the next one needs too: inventory, passwords, federation; site.yml
    needs all that describes the federation, the others follow what stands."""
    given = context.CLIARGS.get("inventory") or ()
    here = [short(Path(source)) if "," not in source else source for source in given]
    words = [] if list(given) in ([], list(C.DEFAULT_HOST_LIST)) else [f"-i {shlex.quote(it)}" for it in here]
    words += ["-K"] if context.CLIARGS.get("become_ask_pass") else []
    answer = context.CLIARGS.get("become_password_file")
    if answer and answer != C.BECOME_PASSWORD_FILE:
        words.append(f"--become-password-file {shlex.quote(short(Path(answer)))}")
    words += ["--ask-vault-pass"] if context.CLIARGS.get("ask_vault_pass") else []
    for vault in context.CLIARGS.get("vault_password_files") or ():
        if vault != C.DEFAULT_VAULT_PASSWORD_FILE:
            words.append(f"--vault-password-file {shlex.quote(short(Path(vault)))}")
    return words + settings(extra, INVENTORY if verb == "site.yml" else ADDRESSING)


def of_the_run(extra: Mapping[str, Any]) -> list[str]:
    """What was typed about the training, which another run repeats."""
    return settings(extra, [name for name in RUN if name not in (*EARLIER, "wait", "resume_changed")])


def settings(extra: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Those of some variables that were typed, as they are typed."""
    words = []
    for name in sorted(set(names) & set(extra)):
        value = extra[name]
        pair = f"{name}={value}" if isinstance(value, str | int | float) else json.dumps({name: value})
        words.append(f"-e {shlex.quote(pair)}")
    return words


def short(path: Path) -> str:
    """A path as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
