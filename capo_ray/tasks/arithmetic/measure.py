"""`python -m capo_ray.tasks.arithmetic.measure`: what the tiny models can do, measured with the exact checker.

Prints the 2x2 table of the policy, answer right or wrong by process right or wrong, and precision and recall per step
of the critic on that policy's own responses, one critique at a time and voted. All on held-out problems. Samples with
plain transformers: slow, and independent of the engines.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capo_ray.config.block import Block, setting
from capo_ray.config.listing import listing
from capo_ray.config.own_settings import AnyPath, read_own
from capo_ray.credit.reply import parse
from capo_ray.program import run_program
from capo_ray.tasks.arithmetic.lessons import Conversation, critic_prompt, policy_prompt
from capo_ray.tasks.arithmetic.world import Problem, check, problems

ASSETS = Path(__file__).resolve().parents[2] / "assets"
CELLS = {"right": True, "wrong": False}
HELD_OUT_SEED = 99


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Of flags against the truth, over all steps."""

    precision: float
    recall: float


class Sampler:
    """A model and its tokenizer, sampled in batches of prompts of equal length."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)

    def __call__(
        self, conversations: Sequence[Conversation], *, max_tokens: int, temperature: float, top_p: float = 1.0
    ) -> list[str]:
        """One reply each; temperature 0 is greedy."""
        by_length: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
        for index, conversation in enumerate(conversations):
            text = self._tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            by_length[len(ids)].append((index, ids))
        replies = [""] * len(conversations)
        for batch in by_length.values():
            generated = self._generate([ids for _, ids in batch], max_tokens, temperature, top_p)
            for (index, _), reply in zip(batch, generated, strict=True):
                replies[index] = reply
        return replies

    def _generate(self, prompts: list[list[int]], max_tokens: int, temperature: float, top_p: float) -> list[str]:
        import torch

        ids = torch.tensor(prompts)
        sampled: Any = {"do_sample": False}
        if temperature > 0:
            sampled = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        with torch.inference_mode():
            output = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_tokens,
                pad_token_id=self._tokenizer.pad_token_id,
                **sampled,
            )
        texts: list[str] = self._tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
        return texts


def answer(policy: Sampler, asked: Sequence[Problem], temperature: float) -> list[str]:
    prompts = [policy_prompt(problem.question) for problem in asked]
    return policy(prompts, max_tokens=64, temperature=temperature)


def table(asked: Sequence[Problem], responses: Sequence[str]) -> dict[tuple[bool, bool], float]:
    """Share of responses by (answer right, process right)."""
    truths = [check(problem, response) for problem, response in zip(asked, responses, strict=True)]
    counts = Counter((truth.answer_right, truth.process_right) for truth in truths)
    return {(a, p): counts[a, p] / len(truths) for a in CELLS.values() for p in CELLS.values()}


def criticise(
    critic: Sampler, asked: Sequence[Problem], responses: Sequence[str], *, votes: int, temperature: float, top_p: float
) -> list[list[set[int] | None]]:
    """`votes` critiques of each response as the steps they flag; None where one cannot be read."""
    prompts = [critic_prompt(problem, response) for problem, response in zip(asked, responses, strict=True)]
    sizes = [len(check(problem, response).steps_right) for problem, response in zip(asked, responses, strict=True)]
    rounds = [critic(prompts, max_tokens=96, temperature=temperature, top_p=top_p) for _ in range(votes)]
    return [[_flags(reply, size) for reply in replies] for *replies, size in zip(*rounds, sizes, strict=True)]


def _flags(reply: str, num_steps: int) -> set[int] | None:
    parsed = parse(reply, num_steps)
    return set(parsed.wrong_steps) if parsed.outcome == "ok" else None


def voted(critiques: Sequence[set[int] | None], share: float) -> set[int] | None:
    """Steps that at least `share` of the valid critiques flag."""
    valid = [flags for flags in critiques if flags is not None]
    counts = Counter(step for flags in valid for step in flags)
    return {step for step, count in counts.items() if count >= share * len(valid)} if valid else None


def quality(truths: Sequence[Sequence[bool]], flagged: Iterable[set[int] | None]) -> Quality:
    """`truths` are the steps_right of the responses. Unreadable critiques are left out."""
    judged = [
        (step in flags, not right)
        for steps, flags in zip(truths, flagged, strict=True)
        if flags is not None
        for step, right in enumerate(steps)
    ]
    hits = sum(flag and wrong for flag, wrong in judged)
    return Quality(
        precision=hits / max(1, sum(flag for flag, _ in judged)),
        recall=hits / max(1, sum(wrong for _, wrong in judged)),
    )


def measure(policy_folder: Path, critic_folder: Path, *, count: int, votes: int, top_p: float) -> dict[str, Any]:
    """All figures, by name, ready for JSON."""
    import torch

    torch.manual_seed(0)
    asked = problems(HELD_OUT_SEED, count, split="held_out")
    policy, critic = Sampler(policy_folder), Sampler(critic_folder)
    greedy = table(asked, answer(policy, asked, 0.0))
    responses = answer(policy, asked, 1.0)
    truths = [check(problem, response).steps_right for problem, response in zip(asked, responses, strict=True)]
    critiques = criticise(critic, asked, responses, votes=votes, temperature=0.7, top_p=top_p)
    num_steps = sum(map(len, truths))
    rules = {"all": 1.0, "at least half": 0.5, "any": 1e-9}
    return {
        "responses": count,
        "policy at temperature 1": _named(table(asked, responses)),
        "policy, greedy": _named(greedy),
        "share of wrong steps": sum(not right for steps in truths for right in steps) / num_steps,
        "critic, one critique": _of(quality(truths, (each[0] for each in critiques))),
        **{
            f"critic, flagged by {name} of {votes}": _of(quality(truths, (voted(each, share) for each in critiques)))
            for name, share in rules.items()
        },
        "critic, unreadable share": sum(each is None for many in critiques for each in many) / (count * votes),
    }


def _named(cells: dict[tuple[bool, bool], float]) -> dict[str, float]:
    return {f"answer {a}, process {p}": round(cells[CELLS[a], CELLS[p]], 4) for a in CELLS for p in CELLS}


def _of(found: Quality) -> dict[str, float]:
    return {"precision": round(found.precision, 4), "recall": round(found.recall, 4)}


USAGE = """usage: python -m capo_ray.tasks.arithmetic.measure [key=value ...]

What the tiny models can do, measured with the exact checker on held-out problems.

  python -m capo_ray.tasks.arithmetic.measure count=200
"""


class Settings(Block):
    """Of this program."""

    policy: AnyPath = setting("folder of the policy", ASSETS / "tiny_policy")
    critic: AnyPath = setting("folder of the critic", ASSETS / "tiny_critic")
    count: int = setting("held-out problems, one response each", 1000, ge=1)
    votes: int = setting("critiques per response", 4, ge=1)
    top_p: float = setting("of the critic", 1.0, gt=0, le=1)


def work(arguments: list[str]) -> int:
    given = read_own(Settings, arguments)
    found = measure(given.policy, given.critic, count=given.count, votes=given.votes, top_p=given.top_p)
    print(json.dumps(found, indent=2))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(work, argv, USAGE, settings=lambda: listing(Settings), bare=True)


if __name__ == "__main__":
    sys.exit(main())
