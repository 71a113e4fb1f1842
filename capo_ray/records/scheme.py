"""How a run scored, as its ledger says: data that is checked, and code that is not run unless it is trusted.

A scheme may name its vote and its advantage by `module:name`, which is code of whoever made the run, and a run
directory may come from anybody. Unless that code is trusted such a name is replaced by one that is known here, and
told. Leaves out the files (see `ledger`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from typing import Any, Literal, get_args, get_origin, get_type_hints

from capo_ray import extension
from capo_ray.credit.advantage import ALGORITHMS
from capo_ray.credit.group import Scheme
from capo_ray.credit.reward import Outcome
from capo_ray.credit.vote import Vote

INSTEAD = {"vote": "majority", "advantage": "capo"}
"""What stands in for a name of the author's own."""
_KNOWN: Mapping[str, tuple[str, ...]] = {"vote": get_args(Vote), "advantage": tuple(ALGORITHMS)}
LARGEST = 1e9
"""Of a weight."""


@dataclass(frozen=True, slots=True)
class RecordedScheme:
    """A scheme that imports nothing but what was trusted."""

    scheme: Scheme
    replaced: Mapping[str, str] = field(default_factory=dict)
    """By key of INSTEAD, the `module:name` that the run had."""


def scheme_to_json(scheme: Scheme) -> str:
    return json.dumps(asdict(scheme), default=lambda pattern: pattern.pattern)


def scheme_from_json(text: str | bytes, *, trust: bool = False) -> RecordedScheme:
    """Raises ValueError for what is no scheme. `trust` keeps the names of code of the author's own, which is imported
    when it is used."""
    try:
        values = json.loads(text)
    except RecursionError as error:
        raise ValueError("no scheme: it is nested too deeply") from error
    if not isinstance(values, dict) or not isinstance(values.get("outcome", {}), dict):
        raise ValueError(f"no scheme, but {str(values)[:60]!r}")
    outcome = dict(values.pop("outcome", {}))
    if (pattern := outcome.get("format_pattern")) is not None:
        try:
            outcome["format_pattern"] = re.compile(pattern)
        except (re.error, TypeError, RecursionError, OverflowError) as error:
            raise ValueError(f"a scheme whose format_pattern is no regular expression: {error}") from error
    _check(outcome, Outcome)
    _check(values, Scheme)
    own = {key: values[key] for key in INSTEAD if values.get(key, INSTEAD[key]) not in _KNOWN[key]}
    if odd := [name for name in own.values() if not extension.is_own(name)]:
        raise ValueError(f"a scheme with {odd[0][:60]!r}, which is not known here and no module:name")
    replaced = {} if trust else own
    known = {**values, **{key: INSTEAD[key] for key in replaced}}
    return RecordedScheme(Scheme(**known, outcome=Outcome(**outcome)), replaced)


def _check(values: Mapping[str, Any], made: type) -> None:
    """Raises ValueError where a value is not of the kind that the dataclass wants."""
    kinds = get_type_hints(made)
    for name, value in values.items():
        if name not in {one.name for one in fields(made)}:
            raise ValueError(f"a scheme with {name[:60]!r}, which is not known here")
        kind = kinds[name]
        if get_origin(kind) is Literal:
            fits = value in get_args(kind)
        elif kind is float:
            fits = type(value) in (int, float) and isfinite(value) and abs(value) <= LARGEST
        elif kind in (int, bool, str):
            fits = type(value) is kind
        else:
            fits = value is None or isinstance(value, re.Pattern)
        if not fits:
            raise ValueError(f"a scheme whose {name} is {str(value)[:60]!r}")
