"""The live grid in Chromium, from a file, with the network off: alive without a kernel, and right."""

from __future__ import annotations

import numpy as np
import pytest
from live_driver import LivePanel

from workbench.grids import PowerGrid, UniformGrid, parse_grid
from workbench.panels.live import LiveGrid, transport
from workbench.quantization import exact_error, sketch, sketch_error

EXPONENTS, CLIPS, BITS = (0.2, 0.55, 1.0, 1.7), (1.0, 0.7), (2, 4, 8)

# Runs the page's own copy of the module on the page's own data: pure arithmetic, no drawing.
ARITHMETIC = """async ([exponents, clips, bits]) => {
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const source = new TextDecoder().decode(bytes(document.getElementById("module").textContent));
  const live = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  const state = JSON.parse(document.getElementById("state").textContent);
  const sketch = live.openSketch(bytes(state.sketches["channel absmax"].data).buffer), found = [];
  for (const b of bits) for (const exponent of exponents) for (const clip of clips)
    found.push(live.query(sketch, live.gridOf({ family: "power", bits: b, exponent, rounding: "power" }, {}), clip).error);
  return found;
}"""


@pytest.fixture(scope="module")
def weight():
    return (0.02 * np.random.default_rng(11).standard_t(5, (256, 512))).astype(np.float32)


@pytest.fixture(scope="module")
def page_file(weight, tmp_path_factory):
    live = LiveGrid.from_layer(weight, bits=4)
    path = live.to_html(
        tmp_path_factory.mktemp("page") / "live.html", title="A layer on a grid", note="Made by a test."
    )
    live.close()
    return path


@pytest.fixture
def live(context, watched_page, page_file):
    """The page, opened offline at 1280 px; nothing may be requested but the file itself."""
    asked = []
    page = watched_page.page
    page.on("request", lambda request: asked.append(request.url))
    context.set_offline(True)
    page.goto(page_file.as_uri())
    panel = LivePanel(page)
    panel.wait()
    yield panel
    assert [url for url in asked if not url.startswith(("file:", "blob:", "data:"))] == []
    assert watched_page.errors == []


def settle(live):
    """Let the page draw what it has been told."""
    live.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_chromiums_arithmetic_is_pythons(live, weight):
    full = sketch(weight)
    seen = transport.unpack_sketch(transport.pack_sketch(full), full)
    found = live.page.evaluate(ARITHMETIC, [list(EXPONENTS), list(CLIPS), list(BITS)])
    cases = [(bits, exponent, clip) for bits in BITS for exponent in EXPONENTS for clip in CLIPS]
    for (bits, exponent, clip), error in zip(cases, found, strict=True):
        expected = sketch_error(seen, PowerGrid(bits, exponent), clip=clip).mse * seen.count / seen.energy
        assert error == pytest.approx(expected, rel=1e-9)


def test_it_opens_on_the_exact_number(live, weight):
    assert live.page.title() == "A layer on a grid"
    assert "Made by a test." in live.page.locator("footer").text_content()
    assert "256 × 512 · float32 · 131,072 weights" in live.text("about")
    exact = exact_error(weight, PowerGrid(4, 0.55))
    assert live.mse().badge == "="
    assert live.mse().value == pytest.approx(exact.mse, rel=6e-4)
    assert live.sqnr().value == pytest.approx(exact.sqnr_db, abs=0.0051)


@pytest.mark.parametrize(("key", "value"), [("bits", 6), ("exponent", 0.9), ("clip", 0.6)])
def test_each_slider_is_alive_without_a_kernel(live, weight, key, value):
    redraws = len(live.redraw_times())
    live.drag(key, value)
    settle(live)
    state = {name: live.value(name) for name in ("bits", "exponent", "clip")}
    assert state[key] == pytest.approx(value, abs=0.02)
    assert live.mse().badge == "≈"
    exact = exact_error(weight, PowerGrid(int(state["bits"]), state["exponent"]), clip=state["clip"])
    assert live.mse().value == pytest.approx(exact.mse, rel=2e-3)
    assert len(live.redraw_times()) > redraws


def test_the_marker_of_the_curve_can_be_dragged(live):
    curve = live.root.locator("canvas[data-curve=exponent]")
    curve.scroll_into_view_if_needed()
    box = curve.bounding_box()
    live.page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 60)
    live.page.mouse.down()
    live.page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 60, steps=6)
    live.page.mouse.up()
    settle(live)
    left, right = 36, box["width"] - 14
    expected = 0.05 + 1.95 * (0.7 * box["width"] - left) / (right - left)
    assert live.value("exponent") == pytest.approx(expected, abs=0.03)


def test_best_buttons_find_what_python_finds(live, weight):
    full = sketch(weight)
    scan = {a: sketch_error(full, PowerGrid(4, a)).mse for a in np.arange(0.1, 1.5, 0.01).round(2)}
    live.page.get_by_role("button", name="Best exponent").click()
    settle(live)
    assert live.mse().value <= min(scan.values()) * (1 + 1e-3)
    assert live.value("exponent") == pytest.approx(min(scan, key=scan.__getitem__), abs=0.03)
    live.page.get_by_role("button", name="Best both").click()
    settle(live)
    grid = [(a, c) for a in np.arange(0.3, 1.3, 0.05) for c in np.arange(0.4, 1.01, 0.05)]
    best = min(sketch_error(full, PowerGrid(4, float(a)), clip=float(c)).mse for a, c in grid)
    assert live.mse().value <= best * (1 + 1e-3)
    live.choice("family").select_option("uniform")
    live.page.get_by_role("button", name="Best clip").click()
    settle(live)
    assert live.text("gain") in {"+0.00 dB", "−0.00 dB"}
    clip = live.value("clip")
    assert live.mse().value == pytest.approx(exact_error(weight, UniformGrid(4), clip=clip).mse, rel=3e-3)


@pytest.mark.parametrize("granularity", ["tensor", "group:128"])
def test_other_granularities_and_families_travel_with_the_page(live, weight, granularity):
    live.choice("granularity").select_option(granularity)
    for family, grid in (("nf4", parse_grid("nf4")), ("uniform", UniformGrid(4)), ("log", parse_grid("log:bits=4"))):
        live.choice("family").select_option(family)
        settle(live)
        exact = exact_error(weight, grid, granularity=granularity)
        assert live.mse().value == pytest.approx(exact.mse, rel=3e-3)
    live.choice("family").select_option("uniform")
    live.choice("range").select_option("full")
    settle(live)
    exact = exact_error(weight, UniformGrid(4, "full"), granularity=granularity)
    assert live.mse().value == pytest.approx(exact.mse, rel=3e-3)
    assert live.choice("rounding").is_hidden()


@pytest.mark.parametrize("typed", ["", "-3", "7000", "e"])
def test_nonsense_is_marked_in_one_sentence_and_never_shown_as_nan(live, typed):
    field = live.root.locator("input[type=number][data-key=clip]")
    field.focus()
    field.press("ControlOrMeta+a")
    field.press("Delete")
    field.press_sequentially(typed)
    settle(live)
    assert live.text("hint").startswith("clip runs from 0.05 to 1")
    assert field.get_attribute("aria-invalid") == "true"
    field.blur()
    live.page.wait_for_function("() => document.querySelector('[data-out=hint]').textContent === ''")
    assert 0.05 <= float(field.input_value()) <= 1
    assert "NaN" not in live.page.locator("body").inner_text()
    assert field.get_attribute("aria-invalid") == "false"


def test_the_histogram_is_read_by_mouse_and_by_keys(live, weight):
    histogram = live.root.locator(".wb-hist")
    histogram.scroll_into_view_if_needed()
    box = histogram.bounding_box()
    u = np.asarray(weight, np.float64) / np.abs(weight).max(axis=1, keepdims=True)
    live.page.mouse.move(box["x"] + 58 + 0.5 * (box["width"] - 72) + 1, box["y"] + 100)
    settle(live)
    said = live.text("readout")
    counted = int(((u >= 0) & (u < 1 / 128)).sum())
    assert said.startswith("0.000 to 0.00781")
    assert abs(int(said.split(": ")[1].split(" weights")[0].replace(",", "")) - counted) <= 1
    assert "code 0: level 0.000" in said
    histogram.focus()
    histogram.press("ArrowRight")
    settle(live)
    assert live.text("readout").startswith("0.007813 to 0.01563: ")
    histogram.blur()
    settle(live)
    assert live.text("readout") == ""


def test_everything_has_a_name_for_assistive_software(live):
    tree = live.page.locator(".wb-live").aria_snapshot()
    for role, name in (("slider", "Bits"), ("slider", "Exponent"), ("slider", "Clip"), ("combobox", "Family")):
        assert f'{role} "{name}"' in tree
    named = live.page.evaluate(
        "() => [...document.querySelectorAll('canvas')].map((c) => c.getAttribute('aria-labelledby').split(' ')"
        ".map((id) => document.getElementById(id).textContent).join(' '))"
    )
    assert all("dB" in name for name in named)
    assert "SQNR = " in named[0]


@pytest.mark.parametrize("width", [480, 1280, 1920])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_width_and_both_themes(live, screenshots, width, scheme):
    live.page.emulate_media(color_scheme=scheme)
    live.page.set_viewport_size({"width": width, "height": 900})
    settle(live)
    assert live.root.get_attribute("data-theme") == scheme
    assert live.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    sharp = live.page.evaluate(
        "() => [...document.querySelectorAll('canvas')].every((c) => Math.abs(c.width - c.clientWidth * devicePixelRatio) <= 1)"
    )
    assert sharp
    screenshots.mkdir(parents=True, exist_ok=True)
    live.page.screenshot(path=screenshots / f"live-{scheme}-{width}.png", full_page=True)


def test_nothing_jumps_while_settings_change(live):
    places = "() => [...document.querySelectorAll('.wb-live canvas, .wb-live input, .wb-live dd')].map((e) => e.getBoundingClientRect().top)"
    before = live.page.evaluate(places)
    for key, value in (("bits", 8), ("bits", 2), ("exponent", 2.0), ("clip", 0.05)):
        live.drag(key, value, steps=4)
        settle(live)
        assert live.page.evaluate(places) == before


def test_cleaning_up_leaves_no_listener(live):
    """After the view's own cleanup neither the window, the theme nor a new size redraws."""
    times = live.root.evaluate_handle("(root) => root.__redrawMs")
    live.page.evaluate("() => window.cleanup()")
    before = times.evaluate("(times) => times.length")
    live.page.emulate_media(color_scheme="dark")
    live.page.set_viewport_size({"width": 1000, "height": 700})
    live.page.evaluate("() => { document.body.className = 'other'; dispatchEvent(new PointerEvent('pointerup')); }")
    settle(live)
    assert times.evaluate("(times) => times.length") == before
