"""The pages in a headless browser: what a reader sees, does and is spared."""

import re
from collections.abc import Iterator
from pathlib import Path
from time import sleep

import browser
import pytest
from view_run import EVIL, write_run, write_step
from view_server import serving

if browser.find() is None:
    pytest.skip(f"no browser: none of {', '.join(browser.NAMES)} is installed", allow_module_level=True)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("view") / "run")


@pytest.fixture(scope="module")
def base(run_dir: Path) -> Iterator[str]:
    with serving(run_dir) as address:
        yield address


@pytest.fixture
def page(base: str) -> Iterator[browser.Page]:
    with browser.page() as made:
        made.look(width=1600, height=1000)
        yield made
        assert made.errors == []
        foreign = [url for url in made.requests if not url.startswith((base, "data:", "about:", "blob:"))]
        assert foreign == []  # it works without a network


def test_a_broken_file_is_said_above_every_page(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run")
    (run_dir / "responses" / "000002-0.parquet").write_text("not this")
    (run_dir / "config.yaml").write_text("[")
    with serving(run_dir) as address, browser.page() as page:
        for path, shown in (("/", "Reward per token"), ("/responses", "6 of 6 responses"), ("/flagged", "written")):
            page.open(address + path)
            page.wait_for("1 of 2 files are not shown")
            page.wait_for("config.yaml cannot be read")
            page.wait_for(shown)
        assert page.errors == []


def test_the_curves(page: browser.Page, base: str) -> None:
    page.open(base)
    page.wait_for("Reward per token")
    page.wait_for("Tokens per second, by role")
    page.wait_for("training step 2 of 3")


def test_every_token_has_its_credit(page: browser.Page, base: str) -> None:
    page.open(f"{base}/response?step=1&prompt=two@0&index=1")
    page.wait_for("Critique 2")
    blame = "getComputedStyle(document.querySelector('.step.flagged .tok i')).backgroundColor"
    credit = "getComputedStyle(document.querySelector('.step:not(.flagged):not(.head) .tok i')).backgroundColor"
    assert page.run(blame) != page.run(credit)
    titles = page.run("[...document.querySelectorAll('.tok i')].map(e => e.title)")
    assert len(titles) == 6 and titles[2].startswith("token 2: advantage -")
    page.click("button", "token reward")
    page.wait("document.querySelector('.tok i').title == 'token 0: reward +2.000'")
    assert page.run("document.querySelector('.step.flagged .tok i').title") == "token 2: reward +1.000"


def test_a_flag_leads_to_its_critique(page: browser.Page, base: str) -> None:
    page.open(f"{base}/response?step=1&prompt=two@0&index=1")
    page.wait_for("Critique 2")
    assert not page.run("document.querySelector('#critique-0').checkVisibility()")
    page.click(".step.flagged a", "✗")
    page.wait("document.querySelector('#critique-0').checkVisibility()")
    assert "I looked at each step" in page.text()


def test_filters_narrow_and_stand_in_the_address(page: browser.Page, base: str) -> None:
    page.open(f"{base}/responses")
    page.wait_for("12 of 12 responses")
    page.choose("Vote", "unjudged")
    page.wait_for("2 of 12 responses")
    page.wait("location.search == '?verdict=unjudged'")
    page.open(f"{base}/responses?answer=wrong&text=so+4&credit=reward")
    page.wait_for("2 of 12 responses")
    for shown in ("training step 2\ntwo@1 / 2", "reward per token"):  # the list comes after the line that counts it
        page.wait_for(shown)
    page.click("a.resp", "two@1")
    page.wait_for("The answer is wrong: 5")
    page.open(f"{base}/responses?steps=77")
    page.wait_for("No response is like that.")
    page.open(f"{base}/responses?steps=lots")
    page.wait_for("Training steps: 'lots' is no range, and hides nothing")


def test_the_rest(page: browser.Page, base: str) -> None:
    page.open(f"{base}/problem?id=two")
    page.wait_for("two was sampled 2 times, oldest first.")
    page.wait("document.querySelectorAll('.steps').length == 2")
    page.open(f"{base}/flagged")
    page.click("table a", "is 5")
    page.wait_for("2 of 12 responses")
    page.open(f"{base}/response?step=9&prompt=two@0&index=1")
    page.wait_for("There is no response 1 to 'two@0' in training step 9 of this run.")


def test_what_a_model_wrote_runs_nothing(page: browser.Page, base: str) -> None:
    for path in ("/responses", "/response?step=1&prompt=evil@0&index=1", "/problem?id=evil", "/flagged"):
        page.open(base + path)
        page.wait_for(EVIL[:12])
        sleep(0.3)
        assert page.run("document.title") != "taken"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize(
    "path",
    [
        *("/", "/responses", "/response?step=1&prompt=two@0&index=1", "/problem?id=two", "/flagged"),
        *("/response?step=9&prompt=none&index=1", "/problem?id=none", "/responses?steps=lots&tokens=9-1"),
    ],
)
def test_narrow_and_wide_light_and_dark(page: browser.Page, base: str, path: str, width: int, dark: bool) -> None:
    """Nothing sticks out of a telephone; dark is what the system says, and letters can be told from what is behind."""
    page.look(width=width, height=900, dark=dark)
    page.open(base + path)
    page.wait_for("12 responses")
    page.wait(f"document.body.classList.contains('body--dark') == {str(dark).lower()}")
    page.wait(f"document.documentElement.scrollWidth <= {width}")
    letters, behind = (page.run(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    assert (brightness(letters) > 0.7, brightness(behind) < 0.3) == (dark, dark), (letters, behind)


def brightness(colour: str) -> float:
    """Of `rgb(r, g, b)`: 0 black, 1 white."""
    red, green, blue = map(int, re.findall(r"\d+", colour)[:3])
    return (0.21 * red + 0.72 * green + 0.07 * blue) / 255


def test_a_live_run_renews_the_page_and_leaves_the_reader_where_he_is(tmp_path: Path) -> None:
    run = write_run(tmp_path / "live", steps=1)
    with serving(run) as base, browser.page() as page:
        page.look(width=800, height=300)
        page.open(f"{base}/responses?answer=correct")
        page.wait_for("3 of 6 responses")
        page.wait("(window.scrollTo(0, 180), window.scrollY) == 180")  # once the list is there
        write_step(run, 2)
        page.wait_for("12 responses")
        page.wait_for("There is more: show it")
        assert page.run("window.scrollY") == 180 and "3 of 6 responses" in page.text()
        page.click("button", "There is more")
        page.wait_for("6 of 12 responses")
