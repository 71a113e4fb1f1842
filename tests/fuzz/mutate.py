"""Files broken by chance, always in the same way for the same seed: JSON with an odd value somewhere, bytes that are
cut, flipped or doubled.

`CAPO_FUZZ=N` tries N times as many as the tests do by themselves. Leaves out what is asked of whoever reads them.
"""

import copy
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TIMES = int(os.environ.get("CAPO_FUZZ", "1"))
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31 - 1, 2**31, 2**40, 2**70, 1.5, -0.0, 1e308, float("nan"), float("inf"), "", "x",
    "0", "\ud800", "\x00\x1b[31m", "x" * 5000, "../../etc/passwd", [], {}, [[]], [None], [[[[[]]]]], {"": None}, [1, 2],
    {"type": "Sequence"}, ["a", 1], "<script>", "os:system", "{{ 1/0 }}", "\N{RIGHT-TO-LEFT OVERRIDE}",
)  # fmt: skip


def seeds(count: int) -> range:
    return range(count * TIMES)


def odd_json(value: Any, seed: int) -> Any:
    """`value` with one to three places in it replaced by something odd, left out or doubled."""
    chance = random.Random(seed)
    value = copy.deepcopy(value)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places or chance.random() < 0.03:
            return chance.choice(ODD)
        holder, key = chance.choice(places)
        what = chance.random()
        if what < 0.15:
            del holder[key]
        elif what < 0.2 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        else:
            holder[key] = copy.deepcopy(chance.choice(ODD))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in [*keys][:40]:
        yield value, key
        yield from _places(value[key])


def odd_bytes(data: bytes, seed: int) -> bytes:
    """`data` cut, emptied, with bytes flipped, or something else put into or behind it."""
    chance = random.Random(seed)
    at = chance.randrange(len(data) + 1)
    kinds: tuple[Callable[[], bytes], ...] = (
        lambda: b"",
        lambda: data[:at],
        lambda: data[at:],
        lambda: data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :],
        lambda: data[:at] + bytes(chance.randrange(256) for _ in range(8)) + data[at + 8 :],
        lambda: data[:at] + b"\xff\xfe\x00" + data[at:],
        lambda: data + data,
        lambda: b"[" * 100_000,
        lambda: b"\x1f\x8b" + data[:20],
        lambda: b"\xef\xbb\xbf" + data,
    )
    return chance.choice(kinds)()


def break_json_file(path: Path, seed: int) -> None:
    """Odd JSON three times of four, else odd bytes."""
    data = path.read_bytes()
    if seed % 4:
        made = json.dumps(odd_json(json.loads(data), seed)).encode("utf-8", errors="surrogatepass")
    else:
        made = odd_bytes(data, seed)
    path.write_bytes(made)
