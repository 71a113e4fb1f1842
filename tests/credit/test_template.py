"""Templates: the shipped two say what they always said, and no template can break the wrapping, whoever wrote it."""

import json
import pickle
import timeit
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capo_ray.credit.critique import Reference, fingerprint, unwrap
from capo_ray.credit.template import SHIPPED, PromptTemplate, TemplateError, shipped
from capo_ray.credit.template_check import check

GOLDEN = json.loads((Path(__file__).parent / "prompts.json").read_text(encoding="utf-8"))
PIECES = [
    "{{ steps }}", "{{ question }}", "{% endblock %}", "{% raw %}", "{# ", " #}", "{{", "}}", "<step_0>", "</step_0>",
    "<incorrect_steps>", "</incorrect_steps>", "<|im_end|>", "[INST]", "</s>", "\\", "\n", "\r\n", " ", "x", "é", "<",
    "&",
]  # fmt: skip
HOSTILE = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
MINE = """\
{# my own #}
{% block system %}
You grade. End with <incorrect_steps>indices</incorrect_steps>.
{% endblock %}
{% block user %}
{{ question }}
{% if reference %}
Right ({{ reference_kind }}): {{ reference }}
{% endif %}
Judge:
{{ steps }}
{% endblock %}
"""


def own(user: str, system: str = "End with <incorrect_steps>.") -> PromptTemplate:
    """`user` begins in line 4."""
    return PromptTemplate(
        f"{{% block system %}}{system}{{% endblock %}}\n\n{{% block user %}}\n{user}\n{{% endblock %}}\n", "mine.jinja"
    )


def fault(template: PromptTemplate, kind: str = "solution") -> str:
    with pytest.raises(TemplateError) as caught:
        check(template, kind)
    return str(caught.value)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['template']}-{case['fingerprint'][:6]}")
def test_the_shipped_templates_say_what_they_always_said(case: dict) -> None:
    """To the byte: a critic ships trained on `brief`, and recorded critiques name what they were shown by its hash."""
    asked = shipped(case["template"]).messages(case["question"], Reference(**case["reference"]), case["steps"])
    assert list(asked) == case["messages"]
    assert fingerprint(asked) == case["fingerprint"]


@pytest.mark.parametrize(("name", "kind"), product(SHIPPED, ["solution", "answer", "none"]))
def test_the_shipped_templates_can_be_used(name: str, kind: str) -> None:
    assert check(shipped(name), kind) == []


def test_a_template_of_ones_own() -> None:
    template = PromptTemplate(MINE, "mine.jinja")
    assert check(template, "solution") == []
    assert template.messages("1 < 2?", Reference("answer", "yes"), ["a", "b"]) == (
        {"role": "system", "content": "You grade. End with <incorrect_steps>indices</incorrect_steps>."},
        {
            "role": "user",
            "content": "1 < 2?\nRight (answer): yes\nJudge:\n<step_0>\na\n</step_0>\n<step_1>\nb\n</step_1>",
        },
    )


def test_the_block_system_is_optional() -> None:
    """For models whose chat template knows no system message."""
    template = PromptTemplate(MINE.replace("system", "user", 1).replace("{% endblock %}\n{% block user %}\n", ""))
    (message,) = template.messages("Q", Reference("none"), ["a"])
    assert message["role"] == "user" and message["content"].startswith("You grade.")
    assert check(template, "none") == []
    assert [m["role"] for m in own("{{ question }}\n{{ steps }}", " ").messages("Q", Reference("none"), ["a"])] == [
        "user"
    ]


FAULTS = {
    "no template": ("{{ question\n{{ steps }}", "mine.jinja, line 5: expected token 'end of print statement', got '{'"),
    "a filter that is not": ("{{ question }}\n{{ reference | shout }}\n{{ steps }}", "line 5: No filter named 'shout'"),
    "a tag that is not": ("\n{% fi %}", "line 5: Encountered unknown tag 'fi'"),
    "a variable that is not": (
        "{{ question }}\n{{ solution }}\n{{ steps }}",
        "line 5: there is no variable 'solution'; there are question, reference, reference_kind, steps",
    ),
    "an attribute that is not": (
        "{{ question }}\n{{ reference.text }}\n{{ steps }}",
        "line 5: 'str object' has no attribute 'text'",
    ),
    "an error": (
        "{{ question }}{{ 1 / 0 }}{{ reference }}\n{{ steps }}",
        "line 4: ZeroDivisionError: division by zero",
    ),
    "a forbidden attribute": (
        "{{ question }}{{ reference.__class__.__mro__ }}\n{{ steps }}",
        "line 4: access to attribute '__class__' of 'str' object is unsafe.",
    ),
    "include": ("{% include 'paper' %}", "line 4: a template stands alone: include, import and extends lead nowhere"),
    "a filter block": (
        "{{ question }}{{ steps }}\n{% filter replace('\\\\', '') %}{{ reference }}{% endfilter %}",
        "line 5: no filter block: it could undo the escaping of what it holds",
    ),
    "a block within": (
        "{{ question }}\n{% block more %}{% endblock %}{{ steps }}",
        "line 5: the blocks are `system` and `user`, side by side; 'more' is not",
    ),
    "no question": ("{{ reference }}\n{{ steps }}", "mine.jinja: `question` is not shown: write {{ question }} where"),
    "a question that is only looked at": (
        "{% if question %}{% endif %}{{ reference }}\n{{ steps }}",
        "`question` is not shown",
    ),
    "no reference": (
        "{{ question }}\n{{ steps }}",
        "`reference` is not shown: write {{ reference }} where the critic should read it (with a reference of kind "
        "solution)",
    ),
    "no answer as reference": (
        "{{ question }}{% if reference_kind == 'solution' %}{{ reference }}{% endif %}\n\n{{ steps }}",
        "`reference` is not shown: write {{ reference }} where the critic should read it (with a "
        "reference of kind answer)",
    ),
    "no steps": (
        "{{ question }}{{ reference }}",
        "it must show the steps once: write {{ steps }}, without a filter, in the block `user`",
    ),
    "steps twice": ("{{ question }}{{ reference }}\n{{ steps }}\n{{ steps }}", "it must show the steps once"),
    "steps through a filter": ("{{ question }}{{ reference }}\n{{ steps | upper }}", "it must show the steps once"),
    "steps through an expression": (
        "{{ question }}{{ reference }}\n{{ 'S:\\n' ~ steps }}",
        "it must show the steps once",
    ),
    "steps for some references": (
        "{{ question }}{{ reference }}\n{% if reference %}{{ steps }}{% endif %}",
        "it must show the steps once",
    ),
    "steps that begin within a line": (
        "{{ question }}{{ reference }}\nSolution: {{ steps }}",
        "the steps cannot be read back from what it renders: {{ steps }} needs a line of its own, once, and no other "
        "line may look like <step_0>",
    ),
    "steps that end within a line": ("{{ question }}{{ reference }}\n{{ steps }}.", "the steps cannot be read back"),
    "an example in our tags": (
        "<step_0>\n1 + 1 = 3\n</step_0>\n{{ question }}{{ reference }}\n{{ steps }}",
        "the steps cannot be read back",
    ),
    "a question letter by letter": (
        "{% for c in question %}{{ c }}{% endfor %}{{ reference }}\n{{ steps }}",
        "the steps cannot be read back",
    ),
}


@pytest.mark.parametrize(("user", "message"), FAULTS.values(), ids=list(FAULTS))
def test_faults(user: str, message: str) -> None:
    told = fault(own(user))
    assert told.startswith("mine.jinja") and message in told


def test_faults_of_the_whole() -> None:
    assert fault(PromptTemplate("{{ question }} {{ steps }} <incorrect_steps>", "x")) == (
        "x: it has no block `user`: put the message between {% block user %} and {% endblock %}"
    )
    assert fault(PromptTemplate(f"{MINE}\n\n  Be kind.\n", "x")) == (
        "x, line 15: what stands outside of the blocks `system` and `user` reaches no critic"
    )
    assert fault(PromptTemplate(f"{{% set who = 'you' %}}{MINE}", "x")).startswith("x, line 1: what stands outside")
    assert fault(PromptTemplate(f"{MINE}{{{{ question }}}}", "x")).startswith("x, line 13: what stands outside")
    assert fault(PromptTemplate(MINE.replace("block system", "block developer"), "x")) == (
        "x, line 2: the blocks are `system` and `user`, side by side; 'developer' is not"
    )
    assert fault(own("{{ question }}{{ reference }}\n{{ steps }}", "<incorrect_steps>\n{{ steps }}")).startswith(
        "mine.jinja: the steps cannot be read back"
    )


def test_a_reference_is_needed_where_one_is_shown() -> None:
    template = own("{{ question }}\n{{ steps }}")
    assert check(template, "none") == []
    assert "kind answer" in fault(template, "answer")


def test_the_answer_format_must_be_named() -> None:
    """In a comment it is enough: a critic can have been trained on the format."""
    user = "{{ question }}{{ reference }}\n{{ steps }}"
    assert fault(own(user, "Grade.")) == (
        "mine.jinja: it does not say how to answer: ask for the indices of the wrong steps between <incorrect_steps> "
        "and </incorrect_steps>. For a critic that was trained to do so a comment is enough: {# <incorrect_steps> #}"
    )
    assert check(own("{# <incorrect_steps> #}" + user, "Grade."), "solution") == []


def test_steps_before_what_is_shared_are_warned_of() -> None:
    (warning,) = check(own("{{ steps }}\n{{ question }} {{ reference }}"), "solution")
    assert warning == (
        "mine.jinja: `question` and `reference` after `steps`: then the prompts of a problem's responses share no "
        "prefix, and the prefix cache of a critic saves less; put the steps behind what they share"
    )
    (warning,) = check(own("{{ question }}\n{{ steps }}\n{{ reference }}"), "solution")
    assert warning.startswith("mine.jinja: `reference` after `steps`: ")


@given(steps=st.lists(HOSTILE, min_size=1, max_size=4), question=HOSTILE, reference=HOSTILE)
@pytest.mark.parametrize(
    "source", [MINE, MINE.replace("{{ question }}", "{{ question | replace('\\\\', '') | safe }}")]
)
def test_no_text_changes_what_surrounds_it(source: str, steps: list[str], question: str, reference: str) -> None:
    """The texts are data: no template syntax in them acts, no tag of theirs stands, no filter brings one back."""
    system, user = PromptTemplate(source).messages(question, Reference("solution", reference), steps)
    assert system["content"] == "You grade. End with <incorrect_steps>indices</incorrect_steps>."
    assert unwrap(user["content"]) == steps
    assert user["content"].count("<step_") == len(steps) == user["content"].count("</step_")
    assert not [
        token for token in ("<incorrect", "</incorrect", "<|im_end|>", "[INST]", "</s>") if token in user["content"]
    ]
    assert user["content"].count("Judge:\n<step_0>\n") == 1


def test_a_template_that_fails_on_one_text_says_where() -> None:
    """What a check at the start cannot foresee ends the run with its cause."""
    template = own("{{ question }}{{ 1 / (question | length - 3) }}{{ reference }}\n{{ steps }}")
    assert check(template, "solution") == []
    with pytest.raises(TemplateError, match=r"^mine\.jinja, line 4: ZeroDivisionError: "):
        template.messages("abc", Reference("none"), ["a"])
    template = own("{{ question }}{{ reference }}\n{% if question != 'abc' %}{{ steps }}{% endif %}")
    assert check(template, "solution") == []
    with pytest.raises(TemplateError, match=r"^mine\.jinja: it must show the steps once"):
        template.messages("abc", Reference("none"), ["a"])


def test_a_template_travels_as_its_text() -> None:
    template = PromptTemplate(MINE, "mine.jinja")
    asked = template.messages("Q", Reference("none"), ["a"])  # compiled before it is sent
    there = pickle.loads(pickle.dumps(template))
    assert there == template and fingerprint(there.messages("Q", Reference("none"), ["a"])) == fingerprint(asked)
    assert len(pickle.dumps(template)) < len(MINE) + 500
    assert template.digest == PromptTemplate(MINE, "moved.jinja").digest != PromptTemplate(MINE + " ").digest


@pytest.mark.parametrize("name", SHIPPED)
def test_rendering_is_cheap(name: str) -> None:
    """Well below a millisecond for 20 steps of 250 characters; the best of many, since machines are busy."""
    steps = [f"Step {i}: since $x < {i}$ we have ${i} + {i} = {2 * i}$ and so on. ".ljust(250, "y") for i in range(20)]
    template, reference = shipped(name), Reference("solution", "By symmetry $n(n + 1)/2$. " * 40)
    seconds = min(
        timeit.repeat(lambda: template.messages("What is $x$? " * 10, reference, steps), number=20, repeat=20)
    )
    assert seconds / 20 < 0.001
