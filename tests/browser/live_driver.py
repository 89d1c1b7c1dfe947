"""Read and drag the live panel in a page, as a person's eyes and hand would."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
THUMB = 16  # CSS pixels; Chromium's range thumb


@dataclass(frozen=True)
class Reading:
    """A number on the page: its badge (``≈``, ``=`` or ``≲``) and its value."""

    badge: str
    value: float


def read_number(text: str) -> Reading:
    """Read ``= 1.234 × 10⁻⁵`` or ``≈ 21.53 dB``."""
    found = re.fullmatch(r"\s*([≈=≲])\s*([−+]?[\d.]+)(?:\s*×\s*10([⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+))?(?:\s*dB)?\s*", text)
    if found is None:
        raise ValueError(f"no number with a badge: {text!r}")
    badge, digits, power = found.groups()
    exponent = int(power.translate(SUPERSCRIPTS)) if power else 0
    return Reading(badge, float(digits.replace("−", "-")) * 10.0**exponent)


def cut_off(page: Any, selector: str) -> list[str]:
    """Return what is wider than its place once the layout has settled, or still after ten seconds."""
    wider: list[str] = []
    for _ in range(40):
        page.wait_for_timeout(250)
        wider = page.evaluate(
            """(selector) => [...document.querySelectorAll(selector)]
                .filter((e) => e.offsetParent && e.scrollWidth > e.clientWidth + 4)
                .map((e) => `${e.className}: ${e.scrollWidth} > ${e.clientWidth}`)""",
            selector,
        )
        if not wider:
            break
    return wider


class LivePanel:
    """The live panel of a page: its controls and its numbers."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.root = page.locator(".wb-live").first

    def wait(self) -> None:
        """Wait until the panel shows a number."""
        self.root.wait_for()
        self.page.wait_for_function(
            "() => /\\d/.test(document.querySelector('.wb-live [data-out=mse]')?.textContent ?? '')"
        )

    def wait_exact(self) -> None:
        """Wait until the page shows the exact number of what its controls say now."""
        # A control that was moved this moment redraws in the next frame: until then the page shows the number before.
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        self.page.wait_for_function(
            "() => document.querySelector('.wb-live [data-out=mse]')?.textContent.startsWith('= ')"
        )

    def text(self, name: str) -> str:
        """Return what an output of the panel says."""
        return self.root.locator(f"[data-out={name}]").text_content() or ""

    def mse(self) -> Reading:
        """Return the mean squared error as the page shows it (four digits)."""
        return read_number(self.text("mse"))

    def sqnr(self) -> Reading:
        """Return the signal to quantization noise as the page shows it (0.01 dB)."""
        return read_number(self.text("sqnr"))

    def slider(self, key: str) -> Any:
        """Return the slider of ``bits``, ``exponent`` or ``clip``."""
        return self.root.locator(f"input[type=range][data-key={key}]")

    def value(self, key: str) -> float:
        """Return a slider's value."""
        return float(self.slider(key).input_value())

    def choice(self, key: str) -> Any:
        """Return the drop-down of ``family``, ``variant``, ``granularity`` or ``scale_rule``."""
        return self.root.locator(f"select[data-key={key}]")

    def place(self, key: str, value: float) -> tuple[float, float]:
        """Return where on the page a slider's thumb is at a value."""
        box = self.slider(key).bounding_box()
        low, high = (float(self.slider(key).get_attribute(edge)) for edge in ("min", "max"))
        along = (value - low) / (high - low)
        return box["x"] + THUMB / 2 + along * (box["width"] - THUMB), box["y"] + box["height"] / 2

    def drag(self, key: str, value: float, *, steps: int = 12) -> None:
        """Drag a slider to a value with the mouse and let go."""
        self.grab(key)
        self.page.mouse.move(*self.place(key, value), steps=steps)
        self.page.mouse.up()

    def grab(self, key: str) -> None:
        """Take a slider by its thumb and hold it."""
        self.slider(key).scroll_into_view_if_needed()
        self.page.mouse.move(*self.place(key, self.value(key)))
        self.page.mouse.down()

    def sweep(self, key: str, low: float, high: float, *, frames: int = 60) -> float:
        """Move a slider that is held, one step in each frame, as a fast hand does; return the longest pause in ms.

        The steps are made in the page: between mouse moves that come from this process a slow machine would pause as if
        the hand rested.
        """
        return self.slider(key).evaluate(
            """async (slider, [low, high, frames]) => {
                let longest = 0, last = performance.now();
                for (let i = 0; i <= frames; i++) {
                    await new Promise(requestAnimationFrame);
                    slider.value = low + (high - low) * i / frames;
                    slider.dispatchEvent(new Event('input', {bubbles: true}));
                    longest = Math.max(longest, performance.now() - last);
                    last = performance.now();
                }
                await new Promise(requestAnimationFrame);
                return longest;
            }""",
            [low, high, frames],
        )

    def glimpse(self, key: str, value: float) -> Reading:
        """Move a slider and return the error that the page shows two frames later, before Python is told."""
        text = self.slider(key).evaluate(
            """async (slider, value) => {
                slider.value = value;
                slider.dispatchEvent(new Event('input', {bubbles: true}));
                for (let i = 0; i < 2; i++) await new Promise(requestAnimationFrame);
                return slider.closest('.wb-live').querySelector('[data-out=mse]').textContent;
            }""",
            value,
        )
        return read_number(text)

    def redraw_times(self) -> list[float]:
        """Return how long each redraw's script ran, in ms, as the panel measured it."""
        return self.root.evaluate("(root) => [...(root.__redrawMs ?? [])]")
