"""What merging an adapter into bfloat16 weights loses: `python benchmarks/lora_rounding.py ADAPTER SAMPLES.jsonl`.

ADAPTER is what a run with trainer.lora has exported, SAMPLES a file of its samples. All passes are taken in float32, so
that the rounding of merged weights is all there is: of the adapter as it is, and of tenths and hundredths of it, as it
was earlier or would be at a lower learning rate. Leaves out rounding inside the passes, which both ways have.
"""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from capo_ray.engines.lora import BASE, CONFIG, WEIGHTS

RESPONSES = 48
SHARES = (1.0, 0.1, 0.01)


def products(adapter: Path) -> dict[str, Tensor]:
    """What the adapter adds, by the name of the weight."""
    said = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    matrices = load_file(adapter / WEIGHTS)
    scale = said["lora_alpha"] / said["r"]
    return {
        name.removeprefix("base_model.model.").replace(".lora_A.", "."): scale
        * matrices[name.replace(".lora_A.", ".lora_B.")].float()
        @ first.float()
        for name, first in matrices.items()
        if ".lora_A." in name
    }


@torch.no_grad()
def logprobs(model: Any, weights: dict[str, Tensor], texts: list[Tensor]) -> Tensor:
    """Of all tokens but the first of each text, by the model with these weights in place of its own."""
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
    found = [torch.log_softmax(model(ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0] for ids in texts]
    return torch.cat(found)


def size(tensors: list[Tensor]) -> float:
    return float(sum(tensor.square().sum() for tensor in tensors)) ** 0.5


def main(adapter: Path, samples: Path) -> None:
    base = json.loads((adapter / BASE).read_text(encoding="utf-8"))["folder"]
    tokenizer, model = AutoTokenizer.from_pretrained(adapter), AutoModelForCausalLM.from_pretrained(base).float()
    own = {name: parameter.detach().bfloat16().float() for name, parameter in model.named_parameters()}
    with samples.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, RESPONSES)]
    texts = [torch.tensor([tokenizer(f"{row['question']}\n{row['response']}")["input_ids"]]) for row in rows]
    before, added = logprobs(model, own, texts), products(adapter)
    print(
        "share of the adapter | log-probabilities move by | merged: off by | lost of the product | weights that change"
    )
    for share in SHARES:
        exact = own | {name: own[name] + share * product for name, product in added.items()}
        rounded = {name: tensor.bfloat16().float() for name, tensor in exact.items()}
        apart, merged = logprobs(model, exact, texts), logprobs(model, rounded, texts)
        lost = size([rounded[name] - exact[name] for name in added]) / size([share * one for one in added.values()])
        changed = sum(int((rounded[name] != own[name]).sum()) for name in added) / sum(map(torch.numel, added.values()))
        moved, off = (float(gap.abs().mean()) for gap in (apart - before, merged - apart))
        print(f"{share:g} | {moved:.4f} | {off:.4f} | {lost:.0%} | {changed:.1%}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
