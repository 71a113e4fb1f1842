"""Every reply of a critic, a line per response as it comes: what a benchmark goes on from, and is computed again from.

A line holds the response, its labels and its critiques, so that the file needs nothing beside it. Leaves out what the
replies are worth (scores).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic

from capo_ray.credit.critique import ReferenceKind
from capo_ray.credit.reply import parse
from capo_ray.critic_bench.scores import Judged
from capo_ray.critics.labelled import Item
from capo_ray.critics.service import Critics
from capo_ray.data.problem import DataError
from capo_ray.files.lines import appending, cut_to_whole_lines
from capo_ray.seeds import seed_of
from capo_ray.types import REPLIED_OUTCOMES, Critique, JsonDict


@dataclass(frozen=True, slots=True)
class Reply:
    """One response with its critiques; `at`: seconds since its session began, when the last of them was there."""

    item: Item
    critiques: tuple[Critique, ...]
    session: int
    at: float

    @property
    def judged(self) -> Judged:
        return Judged(self.item.labels, self.critiques)

    @property
    def failed(self) -> bool:
        """Whether a critic was asked and did not answer, as it may next time. A prompt that is too long is answered."""
        return any(c.outcome in ("timeout", "engine_error", "cancelled") for c in self.critiques)

    def line(self) -> str:
        critiques = [
            {
                "outcome": critique.outcome,
                "wrong_steps": critique.wrong_steps,
                "num_tokens": critique.num_tokens,
                "critic": critique.critic,
                "text": critique.text,
            }
            for critique in self.critiques
        ]
        record = {"item": asdict(self.item), "session": self.session, "at": self.at, "critiques": critiques}
        return json.dumps(record, ensure_ascii=False) + "\n"


def read_replies(path: Path) -> list[Reply]:
    """The replies of a file, failed ones only where they were not asked for again; a last line that was cut off is
    left out, and so is not done. Raises DataError."""
    if not path.is_file():
        raise DataError(f"replay: there is no file {path}")
    replies = []
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, start=1):
        try:
            replies.append(_reply(json.loads(line.decode("utf-8"))))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: no reply of a critic ({type(error).__name__}: {error})") from None
    last = {reply.item.id: reply for reply in replies}
    return [reply for reply in replies if not reply.failed or last[reply.item.id] is reply]


def _reply(record: JsonDict) -> Reply:
    item = Item.of(record["item"])
    critiques = tuple(_critique(given, len(item.steps)) for given in record["critiques"])
    return Reply(item, critiques, record["session"], record["at"])


def _critique(given: JsonDict, num_steps: int) -> Critique:
    """Read again from its text, so that a replay shows what today's parser makes of it."""
    if given["outcome"] not in REPLIED_OUTCOMES:
        return Critique(text=given["text"], outcome=given["outcome"], critic=given["critic"])
    cut = given["outcome"] == "truncated"
    return parse(given["text"], num_steps, truncated=cut, critic=given["critic"], num_tokens=int(given["num_tokens"]))


def say_failed(replies: Sequence[Reply]) -> None:
    """Tell the user of critics that did not answer."""
    if failed := sum(reply.failed for reply in replies):
        print(f"of {failed} of {len(replies)} responses critiques failed; this command asks again", file=sys.stderr)


def seconds_of(replies: Sequence[Reply]) -> float:
    """Time that was spent on asking, all sessions together."""
    ends: dict[int, float] = {}
    for reply in replies:
        ends[reply.session] = max(reply.at, ends.get(reply.session, 0.0))
    return sum(ends.values())


async def ask(
    items: Sequence[Item],
    critics: Critics,
    path: Path,
    *,
    reference: ReferenceKind,
    seed: int,
    progress: Callable[[], None] = lambda: None,
) -> list[Reply]:
    """Have `items` judged and append each reply to `path` as it comes; those there that did not fail are done.

    All replies in the order of the items.
    """
    done = {reply.item.id: reply for reply in kept_replies(path)}
    session = max((reply.session for reply in done.values()), default=-1) + 1
    start = monotonic()

    async def one(item: Item, append: Callable[[str], None]) -> None:
        critiques = await item.judged_by(critics, reference=reference, seed=seed_of(seed, "critic_bench", item.id))
        reply = Reply(item, critiques, session, round(monotonic() - start, 3))
        append(reply.line())
        done[item.id] = reply
        progress()

    with appending(path) as append:
        async with asyncio.TaskGroup() as tasks:
            for item in items:
                if item.id in done and not done[item.id].failed:
                    progress()
                else:
                    tasks.create_task(one(item, append))
    return [done[item.id] for item in items]


def kept_replies(path: Path) -> list[Reply]:
    """What stands in `path`, after a line that was cut off is removed from it."""
    cut_to_whole_lines(path)
    return read_replies(path) if path.exists() else []
