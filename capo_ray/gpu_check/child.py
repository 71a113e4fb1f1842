"""The process of one part of the check: calls what the part does and writes down how it ended.

Leaves out limits and ends by force (`watching`).
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from capo_ray.gpu_check.notes import Cannot, Notes, first_line
from capo_ray.leaving import leave


def main(arguments: Sequence[str]) -> None:
    module, function, device, folder, options = arguments
    assert device in ("cpu", "gpu")
    notes = Notes(Path(folder), "gpu" if device == "gpu" else "cpu")
    try:
        getattr(import_module(module), function)(notes, **json.loads(options))
    except Cannot as reason:
        notes.end("skipped", str(reason))
    except Exception as error:
        traceback.print_exc()
        notes.end("failed", f"{type(error).__name__}: {first_line(error)}")
        leave(1)
    else:
        notes.end("ok")
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1:])
