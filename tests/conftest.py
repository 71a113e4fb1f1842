"""What every test can use: the folder of real test data; and which tests may be skipped."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("CAPO_TEST_DATA") or ROOT.parent / "shared" / "data")

ALLOWED_SKIPS = (
    "no real test data: ",
    "no browser: ",
    "Prometheus is not installed ",
    "the wheel of SmolLM2 cannot be had: ",
    "no network namespaces: ",
    "faults need a disk and a network of their own: ",
)
"""How the reasons begin for which a test may be skipped: what a machine may lack."""

LONGEST_FIRST = ("e2e", "engine", "slow")
"""Marks of tests, by how long they take."""

settings.register_profile("untimed", deadline=None)  # a busy machine fails no test
settings.load_profile("untimed")
# Ray hands its metrics on every ten seconds, and reads this once, when it is imported: tests of them wait for less.
os.environ.setdefault("RAY_metrics_report_interval_ms", "2000")
# A shell starts what runs in the background deaf to Ctrl-C, and so would be every program that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--strict-skips", action="store_true", help="a skip for a reason that is not allowed fails the run"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of long tests first, so that of several processes none is left alone with one at the end."""
    first: dict[Path, int] = {}
    for item in items:
        marks = [number for number, name in enumerate(LONGEST_FIRST) if item.get_closest_marker(name)]
        first[item.path] = min(*marks, first.get(item.path, len(LONGEST_FIRST)), len(LONGEST_FIRST))
    items.sort(key=lambda item: first[item.path])


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of real inputs; never part of the repository."""
    if not DATA.is_dir():
        pytest.skip(f"no real test data: CAPO_TEST_DATA, or else {DATA}, is not a folder")
    return DATA


@pytest.fixture(autouse=True)
def _hygiene() -> Iterator[None]:
    """A test leaves the working directory and the environment as they were."""
    folder, environment = Path.cwd(), dict(os.environ)
    yield
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A skip for another reason fails the run: a suite that skips itself proves nothing."""
    if exitstatus == pytest.ExitCode.OK and _skips_not_allowed(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for reason in _skips_not_allowed(config):
        terminalreporter.write_line(
            f"FAILED: a test is skipped and conftest.ALLOWED_SKIPS has no such reason: {reason}"
        )


def _skips_not_allowed(config: pytest.Config) -> list[str]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not config.getoption("--strict-skips"):
        return []
    reasons = [report.longrepr[2].removeprefix("Skipped: ") for report in reporter.stats.get("skipped", [])]
    return [reason for reason in reasons if not reason.startswith(ALLOWED_SKIPS)]
