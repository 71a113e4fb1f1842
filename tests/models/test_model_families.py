"""The model families that people use: found, rendered, encoded, decoded, cut into steps and graded, from files in the
shapes of theirs."""

import json
from pathlib import Path

import pytest
from model_folders import FAMILIES, make

from capo_ray import launch
from capo_ray.config.fault import ConfigError
from capo_ray.config.model import Model
from capo_ray.credit.steps import steps_of
from capo_ray.credit.tokens import TokenTable
from capo_ray.models.chat import conversation
from capo_ray.models.find import check_trained, find_model, shown
from capo_ray.planning.machine import shape_of
from capo_ray.sft import __main__ as sft
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


def test_whether_it_can_be_trained_is_told_before_anything_starts(name: str, folder: Path) -> None:
    if name != "mistral 3":
        check_trained(folder, "policy")
        return
    with pytest.raises(ConfigError) as error:
        check_trained(folder, "policy")
    assert str(error.value) == (
        f"policy.path: {folder}/config.json: it names Mistral3ForConditionalGeneration, which is no "
        "language model of text alone: transformers' AutoModelForCausalLM, by which models are trained, does not load "
        "it. Take the family's model for text, or write the language model that is in it to a folder of its own"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "new_kind"}, "does not know what it describes (The checkpoint you are trying"),
        ({"model_type": "gemma2"}, "models whose config sets final_logit_softcapping are not supported: their logits"),
    ],
)
def test_what_the_trainer_cannot_make(tmp_path: Path, changes: dict[str, str], said: str) -> None:
    folder = make(tmp_path / "model", FAMILIES["mistral"])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ConfigError) as error:
        check_trained(folder, "policy")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_layers_that_see_less_than_a_sequence_take_no_row_of_several(tmp_path: Path) -> None:
    folder = make(tmp_path / "model", FAMILIES["mistral"])
    config = json.loads((folder / "config.json").read_text()) | {"sliding_window": 100}
    for changes, said in (
        ({}, "attention over 100 tokens"),
        ({"model_type": "qwen3_next", "layer_types": None}, "linear_attention"),
    ):
        (folder / "config.json").write_text(json.dumps(config | changes))
        check_trained(folder, "policy")
        with pytest.raises(ConfigError) as error:
            check_trained(folder, "policy", longest=101)
        assert said in str(error.value) and str(error.value).endswith(
            " and sequences of up to 101 tokens would stand in one row: set packing=padded (trainer.packing of a run)"
        )
    (folder / "config.json").write_text(json.dumps(config))
    check_trained(folder, "policy", longest=100)


@pytest.mark.parametrize("program", ["launch", "sft"])
def test_a_dry_run_and_a_start_say_it_too(program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path / "model", FAMILIES["mistral 3"])
    talk = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    (tmp_path / "talks.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    given = [f"model={folder}", f"data={tmp_path}/talks.jsonl", f"out={tmp_path}/out", "device=cpu"]
    main = sft.main
    if program == "launch":
        given = ["+experiment=tiny_cpu", f"policy.path={folder}", f"run_dir={tmp_path}/out"]
        main = launch.main
    assert main([*given, "dry_run=true"]) == 2
    assert "config.json: it names Mistral3ForConditionalGeneration" in capsys.readouterr().out
    assert main(given) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "names Mistral3ForConditionalGeneration" in error
    assert not (tmp_path / "out").exists()
