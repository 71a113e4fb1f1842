"""Responses for tests: one token per piece of text and one more for the end."""

from capo_ray.types import Finish, Rollout

END = 2


def response(
    *pieces: str, index: int = 0, prompt_id: str = "p", finish: Finish = "stop", versions: tuple[int, ...] = (0,)
) -> Rollout:
    """Tokens are numbered from 10; a response that is cut off has no end token."""
    parts = pieces if finish == "length" else (*pieces, "")
    ends, position = [], 0
    for part in parts:
        position += len(part)
        ends.append(position)
    ids = tuple(10 + number for number in range(len(pieces)))
    return Rollout(
        prompt_id=prompt_id,
        index=index,
        text="".join(pieces),
        finish=finish,
        token_ids=ids if finish == "length" else (*ids, END),
        logprobs=tuple(-0.5 - number for number in range(len(parts))),
        char_ends=tuple(ends),
        versions=versions,
    )
