"""TRL's GRPOTrainer on the prompts of a run of the tiny world: step.py starts it, with TRL's folder on PYTHONPATH.

    python benchmarks/step_trl.py SETTINGS.json

Writes a line for each training step to the file that the settings name: when it was over, and its seconds of sampling
and of rewards. Leaves out what is compared with it (step).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from time import perf_counter, time
from typing import Any


def main() -> None:
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from capo_ray.tasks.arithmetic.world import verify_answer

    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    rows = [{"prompt": tokenizer.decode(row["ids"]), "question": row["question"]} for row in given["prompts"]]
    for row, prompt in zip(rows, given["prompts"], strict=True):
        if tokenizer(row["prompt"])["input_ids"] != prompt["ids"]:
            raise SystemExit(f"TRL would make other tokens of the prompt {row['prompt']!r}")
    seconds: dict[str, float] = {}

    def timed(name: str, work: Any, *arguments: Any) -> Any:
        start = perf_counter()
        made = work(*arguments)
        seconds[name] = seconds.get(name, 0.0) + perf_counter() - start
        return made

    class Timed(GRPOTrainer):
        """Its methods, with a clock beside them; a step begins when the trainer samples."""

        begun = 0

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            self.step_over()
            self.begun += 1
            return super()._generate_and_score_completions(inputs)

        def _generate_single_turn(self, *arguments: Any) -> Any:
            return timed("sampling", super()._generate_single_turn, *arguments)

        def _calculate_rewards(self, *arguments: Any) -> Any:
            return timed("reward", super()._calculate_rewards, *arguments)

        def step_over(self) -> None:
            if self.begun:
                with Path(given["lines"]).open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": self.begun, "time": time(), **seconds}) + "\n")
            seconds.clear()

    def reward(completions: list[str], question: list[str], **_: Any) -> list[float]:
        return [float(verify_answer(q, c).answer == "correct") for q, c in zip(question, completions, strict=True)]

    trainer = Timed(
        model=AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32),
        reward_funcs=reward,
        args=GRPOConfig(**given["config"]),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.step_over()


if __name__ == "__main__":
    main()
