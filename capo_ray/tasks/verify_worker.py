"""The child of `verify`: judges one answer per line of JSON, until its input ends or it is killed.

In: {"gold", "response"}. Out: {"ready": true} once, then {"answer", "extracted", "reason"} per line. Run it as
`python -m capo_ray.tasks.verify_worker`. It dies with the thread that started it, and stops at MEMORY_GIB.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import resource
import signal
import sys

from capo_ray.tasks.math import judge
from capo_ray.types import Verification

MEMORY_GIB = 4
_PR_SET_PDEATHSIG = 1
_LONGEST_EXTRACT = 500


def main() -> int:
    die_with_parent(int(sys.argv[1]) if len(sys.argv) > 1 else os.getppid())
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_GIB << 30, MEMORY_GIB << 30))
    logging.disable(logging.CRITICAL)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints does not come between the answers
    judge("3", "\\boxed{\\sum_{k=1}^{2} k}")  # loads what is loaded late
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin.buffer:
        task = json.loads(line)
        print(json.dumps(_verdict(task["gold"], task["response"])), file=answers, flush=True)
    return 0


def _verdict(gold: str, response: str) -> dict[str, str | None]:
    try:
        found = judge(gold, response)
    except (Exception, RecursionError, MemoryError) as error:  # whatever an answer does to the algebra is no verdict
        found = Verification(answer="unverifiable", reason=f"verification failed: {type(error).__name__}")
    extracted = found.extracted[:_LONGEST_EXTRACT] if found.extracted is not None else None
    return {"answer": found.answer, "extracted": extracted, "reason": found.reason}


def die_with_parent(parent: int) -> None:
    """Be killed when the parent ends, however it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before the line above
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
