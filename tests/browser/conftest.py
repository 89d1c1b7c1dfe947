"""Fixtures of the browser tests: one JupyterLab and one Voilà for the session, a watched page for each test."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # harness.py is a helper of these tests, not a package

from harness import LATENCY_FILE, LAUNCH_ARGS, LabPage, LabServer, VoilaServer, WatchedPage
from live_driver import LivePanel
from playwright.sync_api import Page, expect

RESULTS = Path(__file__).resolve().parents[2] / "test-results"
STARTED = time.time()
# A shared machine may take seconds for what a quiet one does at once; a condition that holds sooner is not waited for.
expect.set_options(timeout=30_000)
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder ``browser``."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict) -> dict:
    """Launch the system's Chromium (Playwright's own is not downloaded)."""
    executable = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if executable is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    return {**browser_type_launch_args, "executable_path": executable, "args": LAUNCH_ARGS}


@pytest.fixture(scope="session")
def browser_context_args(browser_context_args: dict) -> dict:
    """The narrower of the two window widths that the workbench is laid out for."""
    return {**browser_context_args, "viewport": {"width": 1280, "height": 900}}


def pytest_terminal_summary(terminalreporter) -> None:
    """Print the latencies that this run measured, each beside its budget."""
    file = RESULTS / LATENCY_FILE
    if not file.exists() or file.stat().st_mtime < STARTED:
        return
    content = json.loads(file.read_text())
    terminalreporter.section("latencies measured in the page")
    for name, value in content["measured"].items():
        budget = content["budget"].get(name)
        shown = f"{value:.1f}" if isinstance(value, float) else value
        terminalreporter.write_line(f"{name}: {shown}" + (f" (budget {budget})" if budget else ""))


@pytest.fixture(scope="session")
def results() -> Path:
    """The folder that measured figures go to: ``test-results``."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    return RESULTS


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """The folder that screenshots go to: ``WORKBENCH_SCREENSHOTS``, else ``test-results/screenshots``."""
    return Path(os.environ.get("WORKBENCH_SCREENSHOTS") or RESULTS / "screenshots")


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    """A JupyterLab server for the session."""
    with LabServer(tmp_path_factory.mktemp("lab")) as server:
        yield server


@pytest.fixture(scope="session")
def voila(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VoilaServer]:
    """A Voilà server for the session."""
    with VoilaServer(tmp_path_factory.mktemp("voila")) as server:
        yield server


@pytest.fixture
def lab_page(page, lab: LabServer, screenshots: Path) -> Iterator[LabPage]:
    """A fresh page on the JupyterLab server; its kernel stops with the test."""
    watched = LabPage(page, lab, screenshots)
    yield watched
    watched.shutdown()


@pytest.fixture(scope="module")
def tab_page(request, browser, browser_context_args, lab: LabServer, screenshots: Path) -> Iterator[Page]:
    """The workbench for a whole module: its ``TAB`` in front, its ``LAYER`` chosen, ``page.lab`` the watched page."""
    tab, layer = request.module.TAB, request.module.LAYER
    context = browser.new_context(**browser_context_args)
    watched = LabPage(context.new_page(), lab, screenshots)
    name = f"{request.module.__name__.rpartition('.')[2]}.ipynb"
    lab.copy_notebook("00_workbench.ipynb", name)
    watched.open_notebook(name)
    watched.hide_chrome()
    watched.run_all()
    page: Any = watched.page
    LivePanel(page).wait()
    page.get_by_placeholder("Search layers").fill(layer)
    page.locator(".qwb-layers .row .label", has_text=re.compile(f"^{re.escape(layer)}$")).click()
    page.get_by_role("tab", name=tab, exact=True).click()
    page.lab = watched
    yield page
    watched.shutdown()
    context.close()


@pytest.fixture
def watched_page(page, screenshots: Path) -> WatchedPage:
    """A fresh page that collects console errors: for Voilà and for files."""
    return WatchedPage(page, screenshots)
