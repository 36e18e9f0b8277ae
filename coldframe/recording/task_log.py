"""What the tasks of a run have printed, out of the log of a client's container.

A task's output stands in the log between two lines that the zygote and its child write. The client's own
processes may write there meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

BEGIN = "coldframe: a task of run {} begins"
END = "coldframe: the task has ended"
_BEGIN = re.compile(re.escape(BEGIN).replace(r"\{\}", r"(\d+)"))
_STAMP = re.compile(r"^\S+Z ?")  # as docker logs --timestamps has it


def of_run(lines: Iterable[str], run_id: str) -> Iterator[str]:
    """Yield the lines that a run's tasks have printed, each task below the line with which it begins.

    >>> log = ["1Z node", f"2Z {BEGIN.format(7)}", "3Z loss 0.3", f"4Z {END}", "5Z node"]
    >>> list(of_run(log, "7")), list(of_run(log, "8"))
    (['2Z coldframe: a task of run 7 begins', '3Z loss 0.3'], [])
    """
    inside = False
    for line in lines:
        text = _STAMP.sub("", line)
        if begin := _BEGIN.fullmatch(text):
            inside = begin[1] == run_id
        elif text.endswith(END):  # below what a task has printed last, or behind it
            inside = False
        if inside:
            yield line
