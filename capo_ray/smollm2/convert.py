"""From a GGUF file to an ordinary model folder: config, weights in bfloat16, tokenizer with its chat template.

transformers reads GGUF but refuses to save a model that came from it, so the weights move into a model that is made
from the configuration alone. Leaves out where the file is from (wheel).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

NOT_OF_A_FOLDER = ("model_type", "quantization_config", "_model_name_or_path")


def convert(gguf: Path, folder: Path) -> int:
    """Write the model of `gguf` into `folder`; its number of parameters."""
    os.environ |= {"TQDM_DISABLE": "1", "DS_ACCELERATOR": "cpu"}  # nothing on the terminal but our own words
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    fields = {name: value for name, value in read.config.to_dict().items() if name not in NOT_OF_A_FOLDER}
    config = AutoConfig.for_model(read.config.model_type, **fields)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())
