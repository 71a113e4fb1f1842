"""What is said of an option that a library has not, or not of that type; the same words for vLLM and DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from pydantic import ValidationError


def no_such(name: str, known: Iterable[str], library: str) -> str:
    return f"{name}: {library} has no such option{nearest(name, known)}"


def nearest(name: str, known: Iterable[str]) -> str:
    """The nearest of the names that are known, as the end of a sentence; empty where none is near."""
    found = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else ""


def first_line(error: ValidationError) -> str:
    """The first fault: where inside the option, and what."""
    fault = error.errors(include_url=False)[0]
    inside = ".".join(str(part) for part in fault["loc"] if not str(part).startswith("function-"))
    message = fault["msg"] if len(fault["msg"]) < 200 else f"{fault['msg'][:200]} ..."
    return f"{inside}: {message}" if inside else message
