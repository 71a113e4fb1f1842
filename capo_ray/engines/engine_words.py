"""Why an engine of vLLM did not start, out of what its processes wrote.

They are processes of their own: who starts one is told that it ended, and to look above. In an actor of Ray, and in a
part of `gpu_check`, what stands above is a file that nobody looks at, so the cause is read there. Leaves out an output
that is no file: on a terminal the cause is above.
"""

from __future__ import annotations

import os
import re
import stat

_ERROR = re.compile(
    r"^\((?:EngineCore|Worker)[^)]*\) ERROR [^\]]*\] ([\w.]+(?:Error|Exception|Exit): .*?)\s*$", re.MULTILINE
)
_ELSEWHERE = "root cause"
"""In the words of a process that only passes on that another has ended."""


class EngineWords:
    """What is written to this process's output, and its children's, from now on."""

    def __init__(self) -> None:
        self._begins = {number: os.fstat(number).st_size for number in (1, 2) if _is_file(number)}

    def cause(self) -> str:
        """The first error of an engine's process, in one line; empty where there is none to be read."""
        for number, begin in self._begins.items():
            with open(f"/proc/self/fd/{number}", "rb") as written:
                written.seek(begin)
                text = written.read().decode(errors="replace")
            if causes := [found for found in _ERROR.findall(text) if _ELSEWHERE not in found]:
                return str(causes[0])
        return ""


def _is_file(number: int) -> bool:
    try:
        return stat.S_ISREG(os.fstat(number).st_mode)
    except OSError:  # it is closed
        return False
