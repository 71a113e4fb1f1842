"""The ledger: what was judged comes back as it was, whole or not at all."""

import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from responses import response

from capo_ray.config.blocks import Tracking
from capo_ray.config.compose import compose
from capo_ray.credit.group import Member, Scheme, score_group
from capo_ray.credit.reply import parse
from capo_ray.credit.reward import Outcome
from capo_ray.credit.steps import steps_of
from capo_ray.credit.template import shipped
from capo_ray.records.ledger import Ledger, LedgerError, read, read_group
from capo_ray.records.scheme import RecordedScheme, scheme_from_json, scheme_to_json
from capo_ray.records.tracking import Tracker
from capo_ray.training.build import make_aggregator
from capo_ray.training.settings import critic_settings
from capo_ray.types import Answer, Critique, Prompt, Sampling

SAMPLING = Sampling(max_tokens=64, temperature=0.7, top_p=0.9)
SCHEME = Scheme(vote="majority", process_weight=0.5)
CRITIQUES = (
    Critique(
        text="No\n<incorrect_steps>1, 9</incorrect_steps>",
        outcome="ok",
        wrong_steps=(1,),
        says_correct=False,
        num_dropped=1,
        critic="critic-0",
        num_tokens=12,
        seed=2**62 - 1,
        prompt_hash="abc",
    ),
    Critique(text="hm é\n", outcome="unreadable", critic="critic-1", num_tokens=3, cached=True, seed=7),
    Critique(text="", outcome="not_asked"),
)


def member(*pieces: str, index: int, answer: Answer = "correct", critiques: tuple[Critique, ...] = CRITIQUES) -> Member:
    rollout = response(*pieces, index=index, versions=(3, 4))
    return Member(rollout=rollout, steps=steps_of(rollout.text, rollout.char_ends), critiques=critiques, answer=answer)


GROUP = (
    member("a\n\n", "b", index=0),
    member("a\n\n", "b\n\n", "c", index=1, answer="unverifiable"),  # dropped, and recorded all the same
    member("", index=3, answer="wrong", critiques=()),
    replace(member("a\n\n", "b", index=4, answer="wrong"), extracted="5", reason="5 is not 4"),
)


def problem(name: str) -> Prompt:
    return Prompt(id=name, question=f"{name}?", token_ids=(1,), answer="4", solution="2 + 2 = 4")


def write(run_dir: Path, *, step: int = 3, shard: int = 1, scheme: Scheme = SCHEME) -> Ledger:
    ledger = Ledger(run_dir, shard=shard, scheme=scheme, sampling=SAMPLING)
    ledger.add(step, problem("p"), GROUP, [(True, False), None, (), (False, False)])
    ledger.add(step, problem("q"), GROUP[:1])
    ledger.add(step + 1, problem("r"), GROUP[:1])  # a later step may have closed groups by now
    ledger.write(step)
    return ledger


def files(run_dir: Path) -> list[str]:
    return sorted(str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file())


def test_what_is_read_is_what_was_recorded(tmp_path: Path) -> None:
    write(tmp_path)
    ((scheme, groups),) = read(tmp_path)
    assert scheme.scheme == SCHEME
    assert [(group.step, group.prompt_id, len(group.members)) for group in groups] == [(3, "p", 4), (3, "q", 1)]
    for recorded, original in zip(groups[0].members, GROUP, strict=True):
        for name in ("critiques", "answer", "extracted", "reason"):
            assert getattr(recorded, name) == getattr(original, name)
        assert [(s.chars, s.tokens) for s in recorded.steps] == [(s.chars, s.tokens) for s in original.steps]
        for name in ("prompt_id", "index", "text", "finish", "versions", "char_ends"):
            assert getattr(recorded.rollout, name) == getattr(original.rollout, name)
    assert (groups[0].question, groups[0].gold, groups[0].solution) == ("p?", "4", "2 + 2 = 4")
    assert groups[0].steps_right == ((True, False), None, (), (False, False)) and groups[1].steps_right == (None,)
    scored, wanted = score_group(groups[0].members, SCHEME), score_group(GROUP, SCHEME)
    assert scored.advantages == wanted.advantages
    assert [m.token_rewards for m in scored.members] == [m.token_rewards for m in wanted.members]


def test_one_that_does_not_have_the_verifiers_view_is_read(tmp_path: Path) -> None:
    write(tmp_path)
    (path,) = (tmp_path / "responses").iterdir()
    pq.write_table(pq.read_table(path).drop_columns(["extracted", "reason"]), path)
    ((_, groups),) = read(tmp_path)
    assert {(m.extracted, m.reason) for group in groups for m in group.members} == {(None, None)}


def test_one_group_is_read_alone(tmp_path: Path) -> None:
    write(tmp_path)
    ((_, groups),) = read(tmp_path)
    assert read_group(tmp_path, "000003-1.parquet", "p") == (RecordedScheme(SCHEME), groups[0])
    with pytest.raises(LedgerError, match=r"000003-1\.parquet holds no response to 'r'"):
        read_group(tmp_path, "000003-1.parquet", "r")


def test_a_row_per_critique_with_how_it_was_sampled(tmp_path: Path) -> None:
    write(tmp_path)
    rows = pq.read_table(tmp_path / "critiques").to_pylist()
    assert len(rows) == 3 * 4
    assert rows[0] == {
        "step": 3,
        "prompt_id": "p",
        "response": 0,
        "critique": 0,
        "prompt_hash": "abc",
        "critic": "critic-0",
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 64,
        "seed": 2**62 - 1,
        "outcome": "ok",
        "wrong_steps": [1],
        "says_correct": False,
        "num_dropped": 1,
        "tokens": 12,
        "from_cache": False,
        "text": "No\n<incorrect_steps>1, 9</incorrect_steps>",
    }
    assert (rows[2]["outcome"], rows[2]["seed"], rows[2]["says_correct"]) == ("not_asked", None, None)
    responses = pq.read_table(tmp_path / "responses").to_pylist()
    assert [(row["response"], row["num_tokens"], row["num_critiques"]) for row in responses[:4]] == [
        (0, 3, 3), (1, 4, 3), (3, 2, 0), (4, 3, 3),
    ]  # fmt: skip
    assert responses[0]["step_tokens"] == [[0, 1], [1, 2]] and responses[0]["step_chars"] == [[0, 3], [3, 4]]


def test_no_text_from_outside_can_keep_a_step_from_being_written(tmp_path: Path) -> None:
    """A reply that a server cut inside an emoji once ended a run at the end of its step."""
    said = parse("No \ud83d \x00\n<incorrect_steps>1</incorrect_steps>", 2, critic="critic-0")
    ledger = Ledger(tmp_path, shard=0, scheme=SCHEME, sampling=SAMPLING)
    ledger.add(
        0,
        replace(problem("p"), question="\ud800?", answer="\udfff"),
        [member("a\n\n", "b", index=0, critiques=(said,))],
    )
    ledger.write(0)
    ((_, (group,)),) = read(tmp_path)
    assert (group.question, group.gold) == ("??", "?")
    (critique,) = group.members[0].critiques
    assert (critique.outcome, critique.wrong_steps) == ("ok", (1,)) and critique.text.startswith("No \ufffd \ufffd\n")


def test_files_are_written_whole_and_by_step(tmp_path: Path) -> None:
    ledger = write(tmp_path)
    assert files(tmp_path) == ["critiques/000003-1.parquet", "responses/000003-1.parquet"]
    ledger.write(3)
    ledger.write(5)  # a shard may have had no prompt of a step
    ledger.write(4)
    assert len(files(tmp_path)) == 4
    assert [groups[0].prompt_id for _, groups in read(tmp_path)] == ["p", "r"]


def test_a_shard_that_is_killed_in_the_middle_leaves_no_half_step(tmp_path: Path) -> None:
    """The responses are written last; here they cannot be."""
    ledger = write(tmp_path)
    (tmp_path / "responses" / "000004-1.partial").mkdir()
    with pytest.raises(OSError):
        ledger.write(4)
    assert (tmp_path / "critiques" / "000004-1.parquet").is_file()
    assert [groups[0].step for _, groups in read(tmp_path)] == [3]


def test_a_run_that_goes_back_forgets_what_is_not_part_of_it(tmp_path: Path) -> None:
    ledger = write(tmp_path)
    ledger.write(4)
    (tmp_path / "critiques" / "000001-0.partial").touch()
    tracking = Tracking(wandb="off", tensorboard=False)
    Tracker(tmp_path, tracking, run_name="r", resolved_config={}, total_steps=9).rewind(3)
    kept = [name for name in files(tmp_path) if not name.startswith("rolled_back/")]
    assert kept == ["critiques/000003-1.parquet", "responses/000003-1.parquet"]


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=re.escape(f"{tmp_path} holds no ledger (no {tmp_path}/responses/STEP-SH")):
        next(read(tmp_path))
    write(tmp_path)
    (tmp_path / "critiques" / "000003-1.parquet").rename(tmp_path / "000003-1.parquet")
    with pytest.raises(LedgerError, match=r"000003-1\.parquet cannot be read: FileNotFoundError"):
        next(read(tmp_path))

    write(tmp_path / "other")
    short = pq.read_table(tmp_path / "other" / "critiques" / "000003-1.parquet").slice(1)
    pq.write_table(short, tmp_path / "critiques" / "000003-1.parquet")
    with pytest.raises(LedgerError, match="step 3, p/0: 2 critiques are recorded, 3 were made"):
        next(read(tmp_path))


def test_a_scheme_travels_whole() -> None:
    outcome = Outcome(format_weight=0.2, format_pattern=re.compile(r"\\boxed\{"), overlong_tokens=4)
    for scheme in (SCHEME, Scheme(outcome=outcome, advantage="grpo", unjudged="outcome_only")):
        assert scheme_from_json(scheme_to_json(scheme)) == RecordedScheme(scheme)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"nope": 1}', "a scheme with 'nope', which is not known here"),
        ("[]", r"no scheme, but '\[\]'"),
        ("null", "no scheme, but 'None'"),
        ("[" * 100_000, "no scheme: it is nested too deeply"),
        ('{"vote": "evil"}', "a scheme with 'evil', which is not known here and no module:name"),
        ('{"vote": 5}', "a scheme whose vote is '5'"),
        ('{"outcome_weight": 1e300}', r"a scheme whose outcome_weight is '1e\+300'"),
        ('{"min_valid_critiques": true}', "a scheme whose min_valid_critiques is 'True'"),
        ('{"outcome": {"format_pattern": "("}}', "a scheme whose format_pattern is no regular expression"),
        ('{"outcome": {"source": "x"}}', "a scheme whose source is 'x'"),
    ],
)
def test_what_is_no_scheme_is_said(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        scheme_from_json(text)


def test_code_that_a_scheme_names_is_kept_where_it_is_trusted_alone() -> None:
    text = scheme_to_json(Scheme(vote="evil:vote", advantage="own:one", process_weight=3.0))
    read = scheme_from_json(text)
    assert read.scheme == Scheme(vote="majority", advantage="capo", process_weight=3.0)
    assert read.replaced == {"vote": "evil:vote", "advantage": "own:one"}
    assert scheme_from_json(text, trust=True).scheme.vote == "evil:vote"


def test_a_number_of_tokens_that_is_not_true_takes_no_memory(tmp_path: Path) -> None:
    write(tmp_path)
    (path,) = (tmp_path / "responses").iterdir()
    table = pq.read_table(path)
    at = table.schema.get_field_index("num_tokens")
    wrong = table.set_column(at, table.schema.field(at), pa.array([2**31 - 1] * len(table), pa.int32()))
    pq.write_table(wrong, path)
    with pytest.raises(LedgerError, match="2147483647 tokens, and"):
        next(read(tmp_path))


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [((), True), (("tracking.ledger=false",), False), (("critic=null", "algorithm.advantage=grpo"), False)],
)
def test_who_keeps_a_ledger(tmp_path: Path, overrides: tuple[str, ...], kept: bool) -> None:
    """A run with critics, unless it is told not to."""
    config = compose(["+experiment=tiny_cpu", *overrides])
    critics = [("critic-0", object())] if config.critic else []
    template = shipped("brief") if config.critic else None
    aggregator = make_aggregator(config, template, critics, tmp_path / "samples", shard=0, put=lambda payload: payload)
    assert (aggregator._ledger is not None) is kept


def test_settings_of_adaptive_voting_and_cache_reach_the_critics() -> None:
    given = ("critic.adaptive=true", "critic.first_round=3", "critic.full_share=0.5", "critic.cache=7", "seed=11")
    config = compose(["+experiment=tiny_cpu", *given, "reward.vote=strict_majority"])
    settings = critic_settings(config, shipped("brief"))
    assert (settings.adaptive, settings.first_round, settings.full_share) == (True, 3, 0.5)
    assert (settings.vote, settings.cache, settings.cache_seed) == ("strict_majority", 7, 11)
