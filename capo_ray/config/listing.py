"""Settings as `--help` lists them, with their defaults. Leaves out units and sources (docs/configuration.md)."""

from __future__ import annotations

import textwrap
from typing import Any

from pydantic import BaseModel

from capo_ray.config.fault import inner_blocks

WIDTH = 118
COLUMN = 52


def listing(
    block: type[BaseModel], heading: str = "settings, as key=value; experiments and files of conf/ set many"
) -> str:
    """Of a model of settings and all blocks in it."""
    return "\n".join([heading, *_lines(block, "")])


def _lines(block: type[BaseModel], place: str) -> list[str]:
    lines = []
    for name, field in block.model_fields.items():
        if (inner := next(inner_blocks(field.annotation), None)) is not None:
            lines += _lines(inner, f"{place}{name}.")
            continue
        default = "(required)" if field.is_required() else _written(field.get_default(call_default_factory=True))
        meaning = (field.description or "").replace("`", "")
        key = f"  {place}{name}={default}"
        wrapped = textwrap.wrap(meaning, WIDTH - COLUMN) or [""]
        lines.append(f"{key:<{COLUMN}}{wrapped[0]}" if len(key) < COLUMN else f"{key}\n{'':<{COLUMN}}{wrapped[0]}")
        lines += [f"{'':<{COLUMN}}{line}" for line in wrapped[1:]]
    return lines


def _written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return f"[{','.join(map(_written, value))}]"
    return f"{value:g}" if isinstance(value, float) else "{}" if value == {} else str(value)


def of_a_run() -> str:
    from capo_ray.config.run import Config

    return listing(Config)
