"""Speeds of GPUs, and how much of them a role gets: what estimates of time are made of. None was measured here.

Leaves out what is done at these speeds (estimate).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    name: str
    flops: float
    """Per second, dense bfloat16, by the vendor's data sheet."""
    eight_bit: float
    """How much faster 8-bit products are."""
    bytes_per_s: float
    """Of its memory, by the data sheet."""
    gib: float
    """Memory as nvidia-smi says it."""


GPUS = {
    "h100": Gpu(name="H100 SXM", flops=989e12, eight_bit=2.0, bytes_per_s=3.35e12, gib=79.6),
    "h200": Gpu(name="H200 SXM", flops=989e12, eight_bit=2.0, bytes_per_s=4.8e12, gib=139.8),
    "a100": Gpu(name="A100 SXM 80 GB", flops=312e12, eight_bit=1.0, bytes_per_s=2.04e12, gib=80.0),
}
"""Sources: NVIDIA's data sheets of H100, H200 and A100 (dense figures, half of those with sparsity)."""

TRAINING = 0.15
"""Share of the peak in an update, at 6 FLOP a token and parameter. Padded trainers on transformers report 6 to 11 %
(TRL's pull request 6092; prime-rl's baselines for 0.6B at 16k), 4B with LoRA 22 %."""
PREFILL = 0.5
"""Share of the peak while prompts are read. Assumed."""
READING = 0.75
"""Share of the memory's speed while tokens are sampled. Assumed."""
PER_TOKEN_S = 2.5e-3
"""Of an engine's own between two tokens. Assumed."""
SYNC_BYTES_PER_S = 28e9
"""Of weights that move to engines: 32B in 2.3 s (TRL's pull request 7131), on H200."""
RESPONSE_SHARE, LONGEST_SHARE, CRITIQUE_SHARE = 0.2, 0.5, 0.3
"""Tokens of the mean response, of the longest of a step, and of the mean critique, as shares of their limits. Assumed:
a run's own are in its metrics."""
