"""The table of layers: what Python sends to the page, and what the page's picks do."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import workbench
from workbench.panels import LayersPanel
from workbench.panels import layers_table as layers_table_module

UP = "model.layers.0.mlp.up_proj"
DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture
def panel(session):
    made = LayersPanel(session)
    yield made
    made.close()


def floats(raw):
    return np.frombuffer(raw, dtype=np.float32)


def test_rows_are_the_models_layers(panel, session):
    rows = panel.table.rows
    assert rows["names"] == list(session.model.layers)
    assert {len(column) for column in rows.values()} == {len(session.model.layers)}
    at = rows["names"].index(UP)
    assert rows["shapes"][at] == "64×32"
    assert rows["parameters"][at] == 64 * 32
    assert rows["kinds"][at] == "linear"
    assert rows["roles"][at] == "up_proj"
    assert rows["measured"][at]
    assert not rows["measured"][rows["names"].index("model.norm")]
    assert panel.table.picked == UP


def test_numbers_arrive_in_row_order(panel, session):
    names = panel.table.rows["names"]
    sqnr, sigma = floats(panel.table.sqnr), floats(panel.table.sigma)
    for at, name in enumerate(names):
        if name in session.layer_errors:
            assert sqnr[at] == np.float32(session.layer_errors[name].sqnr_db)
            weight = np.asarray(session.model[name].weight).astype(np.float64)
            assert sigma[at] == pytest.approx(np.abs(weight).max() / weight.std(), rel=1e-4)
        else:
            assert np.isnan(sqnr[at])


def test_picks_on_the_page_reach_the_session_and_back(panel, session):
    panel.table.picked = DOWN
    assert session.layer_name == DOWN
    session.select(UP)
    assert panel.table.picked == UP
    panel.table.compared = [DOWN]
    assert session.compared == (DOWN,)
    session.compared = ()
    assert panel.table.compared == []


def test_a_batch_is_one_message(panel, session):
    sent = []
    panel.table.comm.send = lambda data=None, **_: sent.append(data)
    session.set_grid("uniform:bits=6")
    assert session.wait(300)
    columns = [set(message["state"]) for message in sent if message.get("method") == "update"]
    assert sum("sqnr" in names for names in columns) <= 3  # emptied, and then all five layers together
    assert all(not names & {"rows", "sigma"} for names in columns)


def test_another_model_replaces_the_rows(panel, session, tmp_path):
    from safetensors.numpy import save_file

    save_file({"only.weight": np.eye(4, dtype=np.float32)}, tmp_path / "m.safetensors")
    session.open(tmp_path / "m.safetensors")
    assert session.wait(300)
    assert panel.table.rows["names"] == ["only"]
    assert panel.table.picked == "only"
    assert len(floats(panel.table.sqnr)) == 1


@pytest.mark.parametrize("rule", ["absmax", "mse", "percentile:99.5"])
def test_its_code_prints_the_errors_it_shows(panel, session, rule, capsys):
    session.scale_rule = rule
    session.clip = 0.9
    assert session.wait(300)
    exec(panel.code(), {})
    printed = dict(line.rsplit(None, 2)[:2] for line in capsys.readouterr().out.splitlines())
    assert set(printed) == set(session.measured_layers())
    for name, text in printed.items():
        assert float(text) == pytest.approx(session.layer_errors[name].sqnr_db, abs=0.006)


def test_snapshot_holds_the_numbers(panel, session):
    snapshot = panel.snapshot()
    json.dumps(snapshot.numbers)
    assert snapshot.numbers["layers"][UP]["sqnr_db"] == session.layer_errors[UP].sqnr_db
    assert snapshot.png.startswith(b"\x89PNG")


def test_an_empty_session_shows_an_empty_table():
    session = workbench.Session()
    panel = LayersPanel(session)
    assert panel.table.rows["names"] == []
    assert panel.error_text == ""
    panel.close()
    session.close()


def test_the_module_is_small():
    source = Path(layers_table_module.__file__).with_suffix(".js")
    assert len(source.read_bytes()) < 17_000  # bytes: each table on a page brings its own copy


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node to run the page's module outside a page")
def test_tree_and_search_of_the_page(tmp_path):
    module = tmp_path / "table.mjs"
    shutil.copy(Path(layers_table_module.__file__).with_suffix(".js"), module)
    program = f"""
import {{ treeOf, matcher }} from {json.dumps(str(module))};
const tree = treeOf(["model.embed", "model.layers.0.a.q", "model.layers.0.a.k", "model.layers.1.a.q"]);
const flat = (node) => node.children.map((c) => [c.label, c.leaves, flat(c)]);
const hit = (query, ...texts) => matcher(query)(...texts);
console.log(JSON.stringify({{ tree: flat(tree), hits: [
  hit("layers q", "model.layers.0.q"), hit("*.q", "model.layers.0.q"), hit("*.k", "model.layers.0.q"),
  hit("L.0", "model.layers.0"), hit("a.c", "abc"), hit("(", "model")] }}));
"""
    done = subprocess.run(["node", "--input-type=module", "-e", program], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["tree"] == [
        [
            "model",
            [0, 1, 2, 3],
            [
                ["embed", [0], []],
                ["layers", [1, 2, 3], [["0.a", [1, 2], [["q", [1], []], ["k", [2], []]]], ["1.a.q", [3], []]]],
            ],
        ]
    ]
    assert found["hits"] == [True, True, False, False, False, False]


def test_picture_and_page_shade_errors_alike():
    from workbench.panels.layers_picture import BANDS, colour_of

    source = Path(layers_table_module.__file__).with_suffix(".js").read_text()
    bands = ", ".join(
        f'[{"Infinity" if limit == float("inf") else f"{limit:g}"}, "{colour}"]' for limit, colour in BANDS
    )
    assert f"const BANDS = [{bands}];" in source
    assert colour_of(-3.0) == "#d55e00"
    assert colour_of(float("inf")) == "#0072b2"
