"""`python benchmarks/same_numbers.py RUN_DIR RUN_DIR`: are the numbers of two runs the same?

What depends on timing is left out. For a change that is not meant to alter results: run `tiny_cpu` before and after it
with one seed. Ends with 1 where a step, a metric or a value differs, and says which.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

UNLIKE = (
    "seconds/",
    "evaluation/seconds",
    "speed/",
    "actor/",
    "idle/",
    "run/",
    "critic/seconds_per_response",
    "trainer/seconds",
    "cache/",  # of two critics the idler one is asked
)
"""Metrics, or beginnings of their names, that differ between two runs of the same."""


def numbers(path: Path) -> dict[int, dict[str, str]]:
    """Of each step of a metrics.jsonl, by the metric's name."""
    found: dict[int, dict[str, str]] = {}
    for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        kept = (name for name in line if name != "time" and not name.startswith(UNLIKE))
        same = {name: json.dumps(line[name]) for name in kept}
        found.setdefault(line["step"], {}).update(same)  # an evaluation has a line of its own
    return found


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    first, second = (numbers(Path(folder) / "metrics.jsonl") for folder in sys.argv[1:])
    differing = [
        f"step {step}, {name}: {one} and {other}"
        for step in sorted({*first, *second})
        for name in sorted({*first.get(step, {}), *second.get(step, {})})
        if (one := first.get(step, {}).get(name)) != (other := second.get(step, {}).get(name))
    ]
    print("\n".join(differing) or f"{len(first)} steps, {len(first[min(first)])} metrics: all the same")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
