"""How long a reader waits for `python -m capo_ray.view` on a run of 100,000 responses.

    python benchmarks/view_page.py RESPONSES.jsonl.gz [NUMBER]

RESPONSES has lines of `question`, `answer`, `solution`, `code` (responses) and `score` (right or wrong), as evaluation
harnesses write them. Each step of the run that is made of them holds all of them once, with four critiques each, whose
flags are drawn at random. A headless Chromium, freshly started, opens the pages; the times are from the request to the
text on the page. The run lies in a temporary folder, which is removed.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter, sleep

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import browser

from capo_ray.credit.group import Member, Scheme
from capo_ray.credit.steps import steps_of
from capo_ray.engines.ports import free_port
from capo_ray.records.ledger import Ledger
from capo_ray.types import Critique, Prompt, Rollout, Sampling

TOKEN = re.compile(r"\s?\w{1,6}|\s?[^\w\s]|\s")
SHARDS = 2


def groups(path: Path) -> list[tuple[Prompt, list[Rollout], list[bool]]]:
    made = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(map(json.loads, lines)):
            answer, solution = str(line["answer"]), line["solution"]
            prompt = Prompt(
                id=f"math-{number}", question=line["question"], token_ids=(1,), answer=answer, solution=solution
            )
            rollouts = [rollout(prompt.id, index, text) for index, text in enumerate(line["code"])]
            made.append((prompt, rollouts, list(map(bool, line["score"]))))
    return made


def rollout(prompt_id: str, index: int, text: str) -> Rollout:
    ends = tuple(match.end() for match in TOKEN.finditer(text))
    return Rollout(
        prompt_id=prompt_id, index=index, text=text, finish="stop", token_ids=(1,) * len(ends),
        logprobs=(0.0,) * len(ends), char_ends=ends, versions=(0,),
    )  # fmt: skip


def critique(steps: int, right: bool, chance: random.Random) -> Critique:
    if chance.random() < 0.03:
        return Critique(text="I cannot say.", outcome="unreadable", critic="critic-0", num_tokens=5)
    wrong = tuple(step for step in range(steps) if chance.random() < (0.02 if right else 0.2))
    text = "\n".join(
        f"Step {step} is {'wrong' if step in wrong else 'right'}: " + "because " * 12 for step in range(steps)
    )
    return Critique(text=text, outcome="ok", wrong_steps=wrong, critic="critic-0", num_tokens=20 * steps)


def make_run(run_dir: Path, source: Path, responses: int) -> int:
    """How many responses it has."""
    problems, chance, count = groups(source), random.Random(0), 0
    sampling = Sampling(max_tokens=1024)
    ledgers = [
        Ledger(run_dir, shard=shard, scheme=Scheme(vote="majority"), sampling=sampling) for shard in range(SHARDS)
    ]
    step = 0
    with (run_dir / "metrics.jsonl").open("w", encoding="utf-8") as metrics:
        while count < responses:
            for number, (prompt, rollouts, scores) in enumerate(problems):
                drawn = Prompt(
                    id=f"{prompt.id}@{step}", question=prompt.question, token_ids=(1,), answer=prompt.answer,
                    solution=prompt.solution,
                )  # fmt: skip
                members = list(members_of(rollouts, scores, chance))
                ledgers[number % SHARDS].add(step, drawn, members)
                count += len(members)
            for ledger in ledgers:
                ledger.write(step)
            metrics.write(json.dumps({"step": step, "time": 0.0, "outcome/accuracy": chance.random()}) + "\n")
            step += 1
    return count


def members_of(rollouts: list[Rollout], scores: list[bool], chance: random.Random) -> Iterator[Member]:
    for made, right in zip(rollouts, scores, strict=True):
        steps = steps_of(made.text, made.char_ends)
        critiques = tuple(critique(len(steps), right, chance) for _ in range(4))
        yield Member(rollout=made, steps=steps, critiques=critiques, answer="correct" if right else "wrong")


def measure(run_dir: Path, total: int) -> None:
    port = free_port()
    began = perf_counter()
    server = subprocess.Popen(
        [sys.executable, "-m", "capo_ray.view", str(run_dir), f"port={port}"], stdout=subprocess.DEVNULL
    )
    base = f"http://127.0.0.1:{port}"
    try:
        while True:
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", port)):
                    break
            sleep(0.02)
        print(f"server answers after {perf_counter() - began:.2f} s")
        with browser.page() as page:
            page.look(width=1600, height=1000)
            timed(page, "first page, index still being read", f"{base}/responses", "page 1 of")
            page.wait_for(f"{total:,} responses", 300)
            print(f"  whole index after {perf_counter() - began:.1f} s")
            timed(page, "first page, again", f"{base}/responses", "page 1 of")
            timed(page, "page 1,000", f"{base}/responses?page=1000", "page 1000 of")
            timed(page, "flagged and differing", f"{base}/responses?verdict=flagged&disagree=yes", "page 1 of")
            timed(page, "text search", f"{base}/responses?text=quadratic", "page 1 of")
            timed(page, "one response", f"{base}/response?step=3&prompt=math-7@3&index=2", "Critique 3")
            timed(page, "one problem over all versions", f"{base}/problem?id=math-7", "was sampled")
            timed(page, "curves", f"{base}/", "Right")
            timed(page, "flagged steps, counted", f"{base}/flagged", "wrong in truth")
        busy = " ".join(Path("/proc/loadavg").read_text().split()[:2])
        print(f"  the machine was waited for by {busy} processes (1 and 5 minutes)")
        status = Path(f"/proc/{server.pid}/status").read_text()
        (resident,) = re.findall(r"VmRSS:\s+(\d+)", status)
        print(f"  memory {int(resident) / 1024:.0f} MiB")
    finally:
        server.terminate()
        server.wait()


def timed(page: browser.Page, what: str, url: str, text: str) -> None:
    begun = perf_counter()
    page.open(url)
    page.wait_for(text, 120)
    print(f"  {what}: {perf_counter() - begun:.2f} s")


def main() -> None:
    source, number = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 100_000
    if browser.find() is None:
        sys.exit(f"no headless browser found: install one of {', '.join(browser.NAMES)}")
    with tempfile.TemporaryDirectory() as folder:
        begun = perf_counter()
        total = make_run(Path(folder), source, number)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 2**20
        print(f"{total:,} responses, {size:.0f} MiB, made in {perf_counter() - begun:.0f} s")
        measure(Path(folder), total)


if __name__ == "__main__":
    main()
