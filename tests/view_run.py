"""A small run to look into: two draws of one problem under two policies, written by the ledger itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from responses import response

from capo_ray.credit.group import Member, Scheme
from capo_ray.credit.steps import steps_of
from capo_ray.records.ledger import Ledger
from capo_ray.types import Answer, Critique, Prompt, Sampling

SCHEME = Scheme(vote="majority")
EVIL = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
"""What a model may write."""
UNREADABLE = Critique(text="?", outcome="unreadable", critic="critic-1")


SAID = "5 <b>"
"""Read from a response, which may say anything."""


def ok(*wrong: int, text: str = "") -> Critique:
    said = text or f"I looked at each step.\n<incorrect_steps>{', '.join(map(str, wrong))}</incorrect_steps>"
    return Critique(text=said, outcome="ok", wrong_steps=wrong, critic="critic-0", num_tokens=9)


def prompt(name: str, step: int) -> Prompt:
    return Prompt(
        id=f"{name}@{step}", question=f"What is {name}?", token_ids=(1,), answer="4", solution="Add the two: 4."
    )


def member(
    made: Prompt, index: int, pieces: list[str], answer: Answer, *critiques: Critique, version: int = 0
) -> Member:
    rollout = response(*pieces, index=index, prompt_id=made.id, versions=(version,))
    return Member(rollout=rollout, steps=steps_of(rollout.text, rollout.char_ends), critiques=critiques, answer=answer)


def write_step(run_dir: Path, step: int, scheme: Scheme = SCHEME) -> None:
    """A group of four for `two`, and one of two for `evil`, whose model attacks the page."""
    ledger = Ledger(run_dir, shard=0, scheme=scheme, sampling=Sampling(max_tokens=64))
    two, evil = prompt("two", step - 1), prompt("evil", step - 1)
    fine, slip = ["2 +", " 2\n\n", "is ", "4"], ["2 +", " 2\n\n", "is ", "5\n\n", "so 4"]
    group = [
        member(two, 0, fine, "correct", ok(), ok(), version=step - 1),
        member(two, 1, slip, "correct", ok(1), ok(1), UNREADABLE, version=step - 1),
        replace(
            member(two, 2, slip, "wrong", ok(1), ok(), ok(), version=step - 1),
            extracted=SAID,
            reason=f"{SAID} is not 4",
        ),
        member(two, 3, ["no"], "unverifiable", UNREADABLE, version=step - 1),
    ]
    ledger.add(step, two, group, [(True, True), (True, False, True), (True, False, True), None])
    attack = [EVIL, "\n\n", "done"]
    ledger.add(
        step,
        evil,
        [
            member(evil, 0, attack, "correct", ok(), ok(), version=step - 1),
            member(evil, 1, attack, "wrong", ok(0, text=EVIL), ok(0), version=step - 1),
        ],
    )
    ledger.write(step)
    with (run_dir / "metrics.jsonl").open("a", encoding="utf-8") as file:
        line = {"step": step, "time": 0.0, "reward/mean_token_reward": step - 0.5, "critic/recall": None}
        file.write(json.dumps(line | {"speed/critic_tokens_per_s": 9.0}) + "\n")


def write_run(run_dir: Path, steps: int = 2) -> Path:
    run_dir.mkdir(exist_ok=True)
    (run_dir / "config.yaml").write_text("steps: 3\n", encoding="utf-8")
    for step in range(1, steps + 1):
        write_step(run_dir, step)
    return run_dir
