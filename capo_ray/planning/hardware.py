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
    "rtx4090": Gpu(name="GeForce RTX 4090", flops=165e12, eight_bit=2.0, bytes_per_s=1.01e12, gib=24.0),
    "l4": Gpu(name="L4", flops=121e12, eight_bit=2.0, bytes_per_s=300e9, gib=22.5),
}
"""Sources: NVIDIA's data sheets of H100, H200, A100 and L4 (dense figures, half of those with sparsity), and its paper
on the Ada architecture (with sums in float32)."""

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
HOST_BYTES_PER_S = 20e9
"""Between a GPU and its host, for what sleeps and wakes; PCIe 4 has 32e9 on paper. Assumed."""
SWITCH_S = 0.5
"""Of one role that falls asleep or wakes, beside its bytes. Assumed; vLLM reports 0.1 to 6 s for a wake in all."""
RESPONSE_SHARE, LONGEST_SHARE, CRITIQUE_SHARE = 0.2, 0.5, 0.3
"""Tokens of the mean response, of the longest of a step, and of the mean critique, as shares of their limits. Assumed:
a run's own are in its metrics."""
