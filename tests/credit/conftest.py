"""The real tokenizers, loaded once."""

from typing import Any

import pytest
from credit_inputs import shared

from capo_ray.credit.tokens import TokenTable, read_tokenizer


@pytest.fixture(scope="session", params=["qwen2", "gpt2"])
def real(request: pytest.FixtureRequest) -> tuple[str, Any, TokenTable]:
    """(name, the tokenizer itself, our table of it)."""
    from tokenizers import Tokenizer

    source, table = read_tokenizer(shared(f"tokenizers/{request.param}"))
    return request.param, Tokenizer.from_str(source), table
