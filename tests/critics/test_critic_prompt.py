"""The prompt of a run's critics as users meet it: named, checked, shown, and the same in every process."""

import json
import logging
import re
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from capo_ray.config.compose import compose
from capo_ray.config.fault import ConfigError
from capo_ray.critics.prompt import example, find_template
from capo_ray.launch import main
from capo_ray.program import BAD_INPUT

ROOT = Path(__file__).resolve().parents[2]
TINY = "+experiment=tiny_cpu"
(DOCUMENTED,) = re.findall(r"^```jinja\n(.*?)^```$", (ROOT / "docs/critics.md").read_text(), re.M | re.S)
SHORT = """\
{% block user %}
{{ question }}
{{ reference }}
{{ steps }}
End with <incorrect_steps></incorrect_steps>.
{% endblock %}
"""


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # the program sets its own
    yield
    logging.captureWarnings(False)


def test_the_documented_template_works(capsys: pytest.CaptureFixture[str]) -> None:
    """The command of the manual, on the template of the manual."""
    Path("deutsch.jinja").write_text(DOCUMENTED)
    assert main([TINY, "critic.template=deutsch.jinja", "dry_run=true"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    heading = "a prompt as a critic reads it (critic.template deutsch.jinja, an invented response)\n"
    plan, shown = printed.out.split(heading)
    assert "placement of tiny_cpu" in plan
    assert shown.startswith(
        "  system\n  | Du prüfst Lösungen von Mathematikaufgaben Schritt für Schritt.\n  user\n  | Auf"
    )
    assert "\n  | \n  | Richtig ist (Lösung):\n  | There are 12 * 8 = 96 pencils." in shown
    assert "nummeriert:\n  | <step_0>\n  | First we count" in shown and shown.count("<step_") == 3
    assert "  | nichts dazwischen.\nthis machine: " in shown


@pytest.mark.parametrize(
    ("overrides", "reads"),
    [
        ((), "  system\n  | Find the wrong steps.\n  user\n  | Question: A school has"),
        (("critic.template=paper",), "  | \n  | Reference solution:\n  | There are 12"),
        (("critic.template=paper", "critic.reference=answer"), "  | \n  | Correct final answer:\n  | 46\n  | \n"),
        (("critic.template=paper", "critic.reference=none"), "are left?\n  | \n  | Student's solution, its steps"),
    ],
)
def test_a_dry_run_shows_what_a_critic_reads(
    capsys: pytest.CaptureFixture[str], overrides: tuple[str, ...], reads: str
) -> None:
    assert main([TINY, *overrides, "dry_run=true"]) == 0
    assert reads in capsys.readouterr().out


def test_without_a_critic_there_is_nothing_to_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([TINY, "critic=null", "algorithm=grpo", "dry_run=true"]) == 0
    assert "as a critic reads it" not in capsys.readouterr().out


def test_the_example_has_no_solution_where_the_data_has_none() -> None:
    config = compose(["+experiment=llama3b_intersection", "data.solution_field=null", "data.path=x.jsonl"])
    assert config.critic is not None
    assert "Correct final answer:\n  | 46\n" in example(config, find_template(config.critic))


@pytest.mark.parametrize("override", ["dry_run=true", "steps=1"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "critic.template: 'my.jinja' is no file here; it must be paper, brief or a Jinja file of your own\n"),
        (b"\xff\xfe", "critic.template: 'my.jinja' cannot be read: 'utf-8' codec can't decode byte 0xff"),
        (b"{% block user %}\n{{ ", "critic.template: my.jinja, line 2: unexpected 'end of template'"),
        (
            SHORT.replace("question", "problem").encode(),
            "critic.template: my.jinja, line 2: there is no variable 'problem'; there are question, reference, ",
        ),
    ],
    ids=["missing", "bytes", "syntax", "variable"],
)
def test_what_cannot_be_asked_with_is_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], content: bytes | None, message: str, override: str
) -> None:
    if content is not None:
        Path("my.jinja").write_bytes(content)
    before = sorted(Path.cwd().rglob("*"))
    assert main([TINY, "critic.template=my.jinja", override]) == BAD_INPUT
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith(f"error: {message}") and printed.err.count("\n") == 1
    assert sorted(Path.cwd().rglob("*")) == before


def test_a_folder_is_no_template() -> None:
    critic = compose([TINY, f"critic.template={ROOT / 'docs'}"]).critic
    assert critic is not None
    with pytest.raises(ConfigError, match=r"docs' is a folder; it must be paper, brief or a Jinja file of your own"):
        find_template(critic)


def test_what_is_doubtful_is_warned_of(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    Path("my.jinja").write_text(
        SHORT.replace("{{ question }}\n", "").replace("{{ steps }}", "{{ steps }}\n{{ question }}")
    )
    assert main([TINY, "critic.template=my.jinja", "dry_run=true"]) == 0
    (warning,) = caplog.messages
    assert warning.startswith("critic.template: my.jinja: `question` after `steps`: ")


def test_a_file_of_an_editor_that_marks_its_bytes() -> None:
    Path("my.jinja").write_bytes(b"\xef\xbb\xbf" + SHORT.replace("\n", "\r\n").encode())
    critic = compose([TINY, "critic.template=my.jinja"]).critic
    assert critic is not None and find_template(critic).source == SHORT


def test_other_processes_need_no_file() -> None:
    """What an aggregator's actor is made from holds the text; the file may be gone, or never have been there."""
    import ray.cloudpickle as cloudpickle

    from capo_ray.training.build import make_aggregator

    Path("my.jinja").write_text(SHORT)
    config = compose([TINY, "critic=truth", "critic.template=my.jinja"])
    assert config.critic is not None
    make = cloudpickle.dumps(partial(make_aggregator, config, find_template(config.critic), [], Path("samples")))
    Path("my.jinja").unlink()
    aggregator = cloudpickle.loads(make)(shard=0, put=lambda payload: payload)
    settings = aggregator._parts.critics._settings
    assert settings.template.source == SHORT


def test_critic_bench_asks_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    """And sees when it was changed between two calls for one folder of replies."""
    from capo_ray.critic_bench.__main__ import main as bench
    from capo_ray.tasks.arithmetic.world import problems

    (problem,) = problems(0, 1)
    row = {"question": problem.question, "response": problem.solution}
    Path("responses.jsonl").write_text(json.dumps(row) + "\n")
    ask = ("critic=truth", "critic.template=my.jinja", "data=arithmetic", "path=responses.jsonl", "k=1", "out=out")
    assert bench(ask) == BAD_INPUT
    assert capsys.readouterr().err.startswith("error: critic.template: 'my.jinja' is no file here")
    assert not Path("out").exists()

    Path("my.jinja").write_text(SHORT.replace("<inc", "{{ 'brackets' }} <inc"))
    assert bench(ask) == 0
    assert json.loads(Path("out/bench.json").read_text())["template"].startswith("my.jinja (")
    capsys.readouterr()
    Path("my.jinja").write_text(SHORT)
    assert bench(ask) == BAD_INPUT
    assert "holds replies of another benchmark (template 'my.jinja (" in capsys.readouterr().err
