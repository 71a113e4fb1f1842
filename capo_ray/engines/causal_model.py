"""A transformers causal language model as the trainer sees it: made, scored and written to a folder.

Works for decoders whose logits are their head's output and nothing more (Llama, Qwen2, Qwen3, Mistral, ...).
Leaves out: optimisation and ranks (see `train_deepspeed`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from capo_ray.engines.lora import targets_of
from capo_ray.learn.batch import MicroBatch
from capo_ray.learn.head import token_logprobs

_HEAD_EXTRAS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Fields of models that change the logits after the head."""


def make(
    source: str | Mapping[str, Any], *, dtype: torch.dtype, seed: int, zero_three: Mapping[str, Any] | None = None
) -> Any:
    """A model from a folder or Hugging Face id with weights, or a random one from a config (.json file or mapping).

    With `zero_three`, DeepSpeed's options of that stage: collective; of every tensor of a folder a rank keeps its share
    from the start, so that none ever holds the whole model. A random one is whole first, or it would be another than at
    other stages.
    """
    torch.manual_seed(seed)
    random = isinstance(source, Mapping) or source.endswith(".json")
    with nullcontext() if zero_three is None or random else _partitioned(dtype, zero_three):
        model = _load(source, dtype)
    _check_head(model.config)
    return without_dropout(model)


def check_class(source: str, *, longest: int | None = None) -> None:
    """Raises ValueError unless the config.json at `source`, a folder or the file itself, is of a model that `make` can
    make and, with `longest`, that takes several sequences of so many tokens in one row. Reads no weights."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # it raises errors of many kinds for files that are odd
        raise ValueError(
            f"transformers {version('transformers')} does not know what it describes "
            f"({' '.join(str(error).split())[:100]}): name a model of a kind that it knows, whose code is not its own"
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        named = (getattr(config, "architectures", None) or [f"a model of type {config.model_type}"])[0]
        raise ValueError(
            f"it names {named}, which is no language model of text alone: transformers' "
            "AutoModelForCausalLM, by which models are trained, does not load it. Take the family's model for text, or "
            "write the language model that is in it to a folder of its own"
        )
    _check_head(config)
    if longest is not None:
        _check_layers(config.get_text_config(), longest)


def check_targets(source: str, named: Sequence[str] | None) -> None:
    """Raises ValueError where a model that `check_class` knows has no layers of these names for adapters."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))
    targets_of(model, named)


def _check_layers(text: Any, longest: int) -> None:
    """A layer sees a whole sequence, or as many tokens of it as a sequence has at most."""
    windows = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")]
    used = getattr(text, "use_sliding_window", True)
    narrow = [f"attention over {window} tokens" for window in windows if window is not None and window < longest]
    other = set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if what := sorted(other) + (narrow if used else []):
        raise ValueError(
            f"its layers have {', '.join(what)}, and sequences of up to {longest} tokens would stand in one row: set "
            "packing=padded (trainer.packing of a run)"
        )


def _check_head(config: Any) -> None:
    text = config.get_text_config()
    if extras := [name for name in _HEAD_EXTRAS if getattr(text, name, None) not in (None, 1, 1.0)]:
        raise ValueError(
            f"models whose config sets {', '.join(extras)} are not supported: their logits are not the head's"
        )


def _load(source: str | Mapping[str, Any], dtype: torch.dtype) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    if isinstance(source, Mapping):
        fields = dict(source)
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        return AutoModelForCausalLM.from_config(config, dtype=dtype)
    if not source.endswith(".json"):
        return _whole(source, dtype)
    if not Path(source).is_file():
        raise ValueError(f"there is no model config {source}")
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source), dtype=dtype)


def _whole(source: str, dtype: torch.dtype) -> Any:
    """The model of a folder. Raises ValueError where its weights are not those of the model, or are no numbers: what is
    missing is made at random by transformers, and what is too much left out, with a warning."""
    from transformers import AutoModelForCausalLM

    try:
        model, said = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, output_loading_info=True)
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(f"{source}: its weights have other shapes than its config.json says: get it again") from error
    own = {_LAYER.sub(".N.", name) for name in model.state_dict()}
    spare = [name for name in said["unexpected_keys"] if _LAYER.sub(".N.", name) in own]
    for names, what in ((said["missing_keys"], "lack"), (spare, "have, beyond what its config.json says,")):
        if names:
            count = f"{len(names)} tensors, the first is" if len(names) > 1 else "1 tensor,"
            raise ValueError(
                f"{source}: its weights {what} {count} {min(names)}: a download that ended early, or files of two "
                "models; get it again"
            )
    for name, parameter in model.named_parameters():
        held = getattr(parameter, "ds_tensor", parameter).detach()  # under ZeRO-3 the share of this rank
        if held.numel() and not all(extreme.isfinite() for extreme in torch.aminmax(held)):
            raise ValueError(f"{source}: its tensor {name} holds numbers that are not finite: get it again")
    return model


_LAYER = re.compile(r"\.\d+\.")


class _ZeroThree:
    """What transformers asks a configuration of DeepSpeed before it makes a model; its own class wants accelerate."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def is_zero3(self) -> bool:
        return True


@contextmanager
def _partitioned(dtype: torch.dtype, options: Mapping[str, Any]) -> Iterator[None]:
    """Inside, transformers makes models under deepspeed.zero.Init, and loads their weights tensor by tensor."""
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    config = _ZeroThree(
        {
            "train_batch_size": dist.get_world_size(),
            "bf16": {"enabled": dtype == torch.bfloat16},
            "zero_optimization": {**options, "stage": 3},
        }
    )
    set_hf_deepspeed_config(config)  # it keeps a weak reference
    try:
        yield
    finally:
        unset_hf_deepspeed_config()


def without_dropout(model: Any) -> Any:
    """Two passes over the same tokens must agree, or the ratio to the old policy is noise from the start."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return model


class Scorer(nn.Module):
    """Log-probabilities of the tokens of a micro-batch. The head sees the tokens that carry loss and no others."""

    def __init__(
        self, model: Any, *, entropy_gradient: bool = False, float32: bool = False, head_tokens: int | None = None
    ) -> None:
        """The last three are `learn.head.token_logprobs`'s. Raises ValueError where the head is not linear."""
        super().__init__()
        self.model = model
        self._how = {"entropy_gradient": entropy_gradient, "float32": float32, "piece": head_tokens}
        head = model.get_output_embeddings()
        if type(head) not in (nn.Linear, ScoringHead):
            raise ValueError(
                f"the head of {type(model).__name__} is a {type(head).__name__}: only linear ones are scored"
            )
        head.__class__ = ScoringHead

    def forward(self, batch: MicroBatch, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy, [N] each, in float32."""
        packed = {} if batch.positions is None else {"position_ids": batch.positions, "segments": batch.segments}
        hidden = self.model.base_model(input_ids=batch.input_ids, use_cache=False, **packed).last_hidden_state
        carrying = hidden.flatten(0, 1)[batch.places]
        scored: tuple[Tensor, Tensor] = self.model.get_output_embeddings()(
            carrying, batch.targets, temperature, **self._how
        )
        return scored


class ScoringHead(nn.Linear):
    """A head that turns hidden states into log-probabilities of `targets` (see `learn.head`), or into logits. Scoring
    is a call of the head itself since ZeRO-3 has its weights there only while it is called, or its gradient taken."""

    def forward(self, hidden: Tensor, targets: Tensor | None = None, *given: Any, **how: Any) -> Any:
        if targets is None:
            return super().forward(hidden)
        return token_logprobs(hidden, self.weight, self.bias, targets, *given, **how)


def shape_of(parameter: Tensor) -> tuple[int, ...]:
    """Also where ZeRO-3 holds a share of it."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def write_description(model: Any, path: str, tokenizer: str | None) -> None:
    """All of a folder that transformers and vLLM load but the weights; `tokenizer`: where its files are copied from."""
    from transformers import AutoTokenizer

    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    if tokenizer is not None:
        AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
