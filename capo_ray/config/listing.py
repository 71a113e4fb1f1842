"""Settings as `--help` lists them: default, kind and meaning, as their models have them.

Leaves out units and sources (docs/configuration.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel

from capo_ray.arguments import help_lines
from capo_ray.config.fault import inner_blocks

HEADING = "settings, as key=value"
OF_A_RUN = "settings of a run, as key=value; experiments and files of conf/ set many"
RANGES = {"minimum": ">= {}", "exclusiveMinimum": "> {}", "maximum": "<= {}", "exclusiveMaximum": "< {}"}


def listing(block: type[BaseModel], heading: str = HEADING) -> str:
    """Of a model of settings and all blocks in it."""
    return "\n".join([heading, *_lines(block, "")])


def beside_run(block: type[BaseModel]) -> Callable[[], str]:
    """What lists the settings of a program that takes the configuration of a run as well."""
    return lambda: f"{listing(block)}\n\n{of_a_run()}"


def _lines(block: type[BaseModel], place: str) -> Iterator[str]:
    specs = block.model_json_schema()["properties"]
    for name, field in block.model_fields.items():
        if field.exclude:
            continue
        if (inner := next(inner_blocks(field.annotation), None)) is not None:
            yield from _lines(inner, f"{place}{name}.")
            continue
        default = "(required)" if field.is_required() else _written(field.get_default(call_default_factory=True))
        kind = kind_of(specs[name]).replace("`", "")
        yield from help_lines(f"{place}{name}", default, kind, (field.description or "").replace("`", ""))


def kind_of(spec: dict[str, Any]) -> str:
    """Type and range of a setting, from its JSON schema."""
    if "$ref" in spec:
        return "block"
    if "anyOf" in spec:
        return " or ".join(kind_of(part) for part in spec["anyOf"])
    if "enum" in spec or "const" in spec:
        return " | ".join(f"`{choice}`" for choice in spec.get("enum", [spec.get("const")]))
    if "items" in spec:
        return f"list of {kind_of(spec['items'])}s"
    if "prefixItems" in spec:
        return f"[{', '.join(kind_of(part) for part in spec['prefixItems'])}]"
    ranges = [text.format(f"{spec[key]:g}") for key, text in RANGES.items() if key in spec]
    pattern = [f"`{spec['pattern']}`"] if "pattern" in spec else []
    return " ".join([spec.get("format", spec["type"]), ", ".join([*ranges, *pattern])]).strip()


def _written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return f"[{','.join(map(_written, value))}]"
    return f"{value:g}" if isinstance(value, float) else "{}" if value == {} else str(value)


def of_a_run() -> str:
    from capo_ray.config.run import Config

    return listing(Config, OF_A_RUN)
