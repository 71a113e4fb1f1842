"""What every test can use: the folder of real test data, and a bound on how many tests may be skipped."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("CAPO_TEST_DATA") or ROOT.parent / "shared" / "data")

settings.register_profile("untimed", deadline=None)  # a busy machine fails no test
settings.load_profile("untimed")
# A shell starts what runs in the background deaf to Ctrl-C, and so would be every program that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--max-skips", type=int, default=None, help="more skipped tests than this fail the run")


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
    """Too many skips fail the run: a suite that skips itself proves nothing."""
    bound = session.config.getoption("--max-skips")
    if bound is None or exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        return
    if _num_skipped(session.config) > bound:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    bound, skipped = config.getoption("--max-skips"), _num_skipped(config)
    if bound is not None:
        verdict = f"FAILED: {skipped} tests skipped" if skipped > bound else f"{skipped} tests skipped"
        terminalreporter.write_line(f"{verdict}, {bound} allowed (--max-skips)")


def _num_skipped(config: pytest.Config) -> int:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return len(reporter.stats.get("skipped", [])) if reporter else 0
