"""The model families that people use: found, rendered, encoded, decoded, cut into steps and graded, from files in the
shapes of theirs."""

from pathlib import Path

import pytest
from model_folders import FAMILIES, make

from capo_ray.chat import conversation
from capo_ray.config.blocks import Model
from capo_ray.credit.steps import steps_of
from capo_ray.credit.tokens import TokenTable
from capo_ray.models import find_model, shown
from capo_ray.planning.machine import shape_of
from capo_ray.tasks.math import judge

RESPONSE = "<think>\nAdd them: \\boxed{6}?\n</think>\n\nFirst add 2 and 3.\n\nThat makes 5.\n\nSo it is \\boxed{5}. 😀"


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(name: str, tmp_path: Path) -> Path:
    return make(tmp_path / "model", FAMILIES[name])


def test_it_is_found_and_planned(folder: Path, tmp_path: Path) -> None:
    found = find_model(Model(path=str(folder)), "policy", tmp_path / "run", seed=0)
    shape = shape_of(Model(path=str(folder)))
    assert shape is not None and found.window == shape.window == 256 and found.vocabulary == shape.vocabulary
    assert (shape.layers, shape.hidden_size, shape.key_value_size) == (2, 8, 4)


def test_it_reads_what_transformers_would_have_it_read(name: str, folder: Path, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    model = Model(path=str(folder))
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    for system in (None, "Be brief."):
        encode = find_model(model, "policy", tmp_path / "run", seed=0).encoder(system)
        talk = conversation("2 + 3? é", system)
        assert list(encode("2 + 3? é")) == theirs.apply_chat_template(
            talk, add_generation_prompt=True, return_dict=False
        )
    talk += [{"role": "assistant", "content": RESPONSE}, {"role": "user", "content": "Sure?"}]
    text = theirs.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert shown(talk, model, add_generation_prompt=True) == text and "TOOLS" not in text


def test_what_it_writes_is_cut_into_steps_and_graded(folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = [*theirs(RESPONSE, add_special_tokens=False).input_ids, theirs.eos_token_id]
    text, char_ends = TokenTable.load(folder).decode(ids)
    assert text == RESPONSE
    steps = steps_of(text, char_ends)
    assert [step.text.strip() for step in steps] == RESPONSE.split("\n\n")
    assert steps[0].tokens[0] == 0 and steps[-1].tokens[1] == len(ids) - 1
    assert judge("5", text).answer == "correct" and judge("6", text).answer == "wrong"


def test_a_token_without_an_embedding_is_text(tmp_path: Path) -> None:
    folder = make(tmp_path / "model", FAMILIES["gemma 3, text"])
    found = find_model(Model(path=str(folder)), "policy", tmp_path / "run", seed=0)
    assert max(found.encoder(None)("What is <image_soft_token>?")) < found.vocabulary
