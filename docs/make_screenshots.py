"""Remake the README's pictures: ``python docs/make_screenshots.py [--out docs/screenshots]``.

The pictures are taken of the real workbench on the shipped demo model, in JupyterLab and Chromium, by the browser tests'
own harness.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "browser"))  # the harness is a helper of the tests, not a package

from harness import LAUNCH_ARGS, LabPage, LabServer  # noqa: E402
from live_driver import LivePanel  # noqa: E402

LARGEST = 300_000  # bytes a picture may take in the repository
LAYER = "model.layers.0.mlp.down_proj"
TABS = ("Weights", "Outliers", "Error", "Integer", "Methods", "Recipe", "Evaluate")


@contextmanager
def workbench_page(work: Path, width: int, height: int) -> Iterator[tuple[LabPage, LivePanel]]:
    """Open the workbench on the demo model in a window of this size."""
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        raise SystemExit("no chromium on this machine: apt-get install chromium")
    os.environ.setdefault("WORKBENCH_CACHE", str(work / "cache"))
    with LabServer(work / "lab") as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=LAUNCH_ARGS)
        page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=1)
        lab = LabPage(page, server, work / "raw")
        lab.open_notebook("00_workbench.ipynb")
        lab.hide_chrome()
        lab.run_all()
        live = LivePanel(page)
        live.wait()
        yield lab, live
        lab.shutdown()
        browser.close()


def settle(lab: LabPage, live: LivePanel) -> None:
    """Wait until the exact number is there, nothing is being measured and the figures are drawn."""
    live.wait_exact()
    lab.page.wait_for_function(
        "() => !document.querySelector('.qwb-layers .pending') && !document.querySelector('.jp-mod-busy')",
        timeout=120_000,
    )
    lab.page.wait_for_timeout(800)


def run_methods(page: Page) -> None:
    """Run methods of each kind on the layer, and wait for their results."""
    for name in ("GPTQ", "AdaRound", "NUPES"):
        page.get_by_role("checkbox", name=name, exact=True).check()
    steps = page.get_by_role("spinbutton", name="Steps")
    steps.fill("100")
    steps.press("Enter")
    page.get_by_role("button", name="Run methods").click()
    page.get_by_text("5 results in").wait_for(timeout=120_000)


def evaluate_recipe(page: Page) -> None:
    """Measure the float model and the recipe's, and let both write."""
    page.get_by_role("button", name="Evaluate", exact=True).click()
    page.get_by_text("3 figures in").wait_for(timeout=240_000)
    page.get_by_role("button", name="Write", exact=True).click()
    page.get_by_text("tokens in").wait_for(timeout=120_000)


def take_pictures(work: Path) -> list[Path]:
    """Take every picture at full size; return the files."""
    whole = ".qwb-panel"
    with workbench_page(work, 1440, 2000) as (lab, live):
        page = lab.page
        page.get_by_placeholder("Search layers").fill(LAYER)
        page.locator(".qwb-layers .row .label", has_text=LAYER).first.click()
        page.get_by_placeholder("Search layers").fill("")
        live.drag("exponent", 0.6)
        settle(lab, live)
        taken = [lab.screenshot("workbench-light", whole), lab.screenshot("live-grid", ".wb-live")]
        for tab in TABS:
            page.get_by_role("tab", name=tab, exact=True).click()
            if tab == "Integer":
                page.wait_for_selector("table.qwb-two td", timeout=120_000)  # the model has run once by then
            if tab == "Methods":
                run_methods(page)
            if tab == "Evaluate":
                evaluate_recipe(page)
            settle(lab, live)
            taken.append(lab.screenshot(f"{tab.lower()}-panel", ".qwb-tabs"))
        page.get_by_role("tab", name=TABS[0], exact=True).click()
        lab.theme("JupyterLab Dark")
        settle(lab, live)
        taken.append(lab.screenshot("workbench-dark", whole))
    return taken


def optimise(picture: Path, out: Path) -> int:
    """Write the picture with as many colours as fit the size limit; return its size in bytes."""
    image = Image.open(picture).convert("RGB")
    for colours in (256, 128, 64, 32):
        image.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(out, optimize=True)
        if out.stat().st_size < LARGEST:
            return out.stat().st_size
    raise SystemExit(f"{out.name} takes {out.stat().st_size:,} bytes even with 32 colours; the limit is {LARGEST:,}")


def main() -> None:
    """Take, shrink, and say what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "screenshots")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        for picture in take_pictures(Path(work)):
            size = optimise(picture, arguments.out / picture.name)
            print(f"{arguments.out / picture.name}: {size:,} bytes")


if __name__ == "__main__":
    main()
