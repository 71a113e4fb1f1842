"""Activations of the plan against those of a real forward and backward pass without storage (FakeTensorMode)."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from capo_ray.config.blocks import Trainer
from capo_ray.config.compose import compose
from capo_ray.config.lora import Lora
from capo_ray.config.model import Shape
from capo_ray.learn import head
from capo_ray.learn.batch import MicroBatch
from capo_ray.planning import memory
from capo_ray.planning.memory import GIB, activation_bytes, rank_memory

ROWS, LENGTH, PROMPT = 10, 1024, 100
WIDTHS = {
    "llama1b_grpo": {"intermediate_size": 8192, "num_attention_heads": 32, "head_dim": 64},
    "llama3b_grpo": {"intermediate_size": 8192, "num_attention_heads": 24, "head_dim": 128},
}
"""Of Llama-3.2, what its shape in conf/ does not say."""


def traced(
    shape: Shape,
    widths: dict[str, int],
    layers: int,
    *,
    checkpointing: bool,
    head_tokens: int | None = None,
    entropy: bool = False,
) -> float:
    """GiB that a policy of so many layers holds at most beside weights and gradients: the real Scorer."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from capo_ray.engines.causal_model import Scorer

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden_size,
        num_hidden_layers=layers,
        num_key_value_heads=shape.key_value_size // widths["head_dim"],
        tie_word_embeddings=True,
        **widths,
    )
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        scorer, tracker = Scorer(model, head_tokens=head_tokens, entropy_gradient=entropy).train(), MemTracker()
        tracker.track_external(scorer)
        with tracker:
            _backward(scorer)
        peak: Any = next(iter(tracker.get_tracker_snapshot("peak").values()))
    parts = {str(getattr(kind, "value", kind)): size for kind, size in peak.items()}
    return (parts["Total"] - parts["Parameter"] - parts["Gradient"]) / GIB


def _backward(scorer: Any) -> None:
    """The objective itself is over one number a token."""
    count = ROWS * (LENGTH - PROMPT)
    zeros, indices = torch.zeros(count), torch.zeros(count, dtype=torch.long)
    batch = MicroBatch(
        input_ids=torch.zeros(ROWS, LENGTH, dtype=torch.long),
        places=indices,
        targets=indices,
        rows=indices,
        weights=zeros,
        advantages=zeros,
        sampler_logprobs=zeros,
    )
    logprobs, entropy = scorer(batch, 0.7)
    objective = (logprobs - logprobs.detach()).exp().sum()
    (objective + entropy.sum() if entropy.requires_grad else objective).backward()


@pytest.mark.parametrize(("head_tokens", "entropy"), [(None, False), (128, False), (10**6, False), (10**6, True)])
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("experiment", list(WIDTHS))
def test_activations_are_within_a_quarter_of_what_is_traced(
    experiment: str, checkpointing: bool, head_tokens: int | None, entropy: bool
) -> None:
    """The layers are equal, so what they all hold follows from one and three of them."""
    shape = compose([f"+experiment={experiment}"]).policy.shape
    assert shape is not None
    asked: dict[str, Any] = {"checkpointing": checkpointing, "head_tokens": head_tokens, "entropy": entropy}
    one, three = (traced(shape, WIDTHS[experiment], n, **asked) for n in (1, 3))
    real = one + (three - one) / 2 * (shape.layers - 1)
    planned = activation_bytes(shape, 2, ROWS * LENGTH, **asked) / GIB
    assert planned == pytest.approx(real, rel=0.25)


def test_the_plan_and_the_head_speak_of_the_same_piece() -> None:
    assert memory.PIECE_ELEMENTS == head.PIECE_ELEMENTS


def test_llama_3b_with_its_reference_on_one_card() -> None:
    """At 8k tokens it fits 80 GB with checkpointing and not without."""
    shape = compose(["+experiment=llama3b_grpo"]).policy.shape

    def needs(checkpointing: bool) -> float:
        trainer = Trainer(learning_rate=1e-6, tokens_per_micro_batch=8192, gradient_checkpointing=checkpointing)
        return sum(rank_memory(trainer, shape, "bfloat16", reference=True, on_cpu=False).most().values())

    assert 70 < needs(True) < 76
    assert 90 < needs(False) < 100


def kept_between_passes(adapter: Lora | None) -> int:
    """Bytes that a forward pass of a real small model keeps for the backward one, beside its parameters."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from capo_ray.engines import lora

    config = LlamaConfig(hidden_size=128, intermediate_size=512, num_hidden_layers=2, vocab_size=512)
    model = AutoModelForCausalLM.from_config(config)
    if adapter is not None:
        lora.adapt(model, adapter, seed=0)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.enable_input_require_grads()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.base_model(torch.arange(512)[None]).last_hidden_state
    hidden.sum().backward()
    return sum(kept.values())


def test_beside_an_adapter_as_much_is_kept_as_where_all_learns() -> None:
    assert kept_between_passes(Lora(rank=4)) == pytest.approx(kept_between_passes(None), rel=0.1)
