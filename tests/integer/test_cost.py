"""Operation counts against counting loops, and how they add up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import IntegerError
from workbench.integer.cost import PATHS, OperationCount, operation_count
from workbench.integer.layer_cost import compare_layers, count_run, path_of
from workbench.integer.layer_geometry import Window
from workbench.integer.layer_run import run_layer


class Counter:
    """A number that counts what is done to it."""

    def __init__(self, log: dict[str, int], width: str = "32") -> None:
        self.log, self.width = log, width

    def __mul__(self, other: Counter) -> Counter:
        self.log["multiply"] = self.log.get("multiply", 0) + 1
        return Counter(self.log)

    def __add__(self, other: Counter) -> Counter:
        self.log["add"] = self.log.get("add", 0) + 1
        return Counter(self.log)


@given(st.integers(0, 4), st.integers(0, 6), st.integers(0, 4))
def test_uniform_counts_are_those_of_the_loops(rows, depth, outputs):
    log: dict[str, int] = {}
    for _ in range(rows * outputs):
        total = Counter(log)  # the bias
        total = total + Counter(log)
        for _ in range(depth):
            total = total + Counter(log) * Counter(log)
        scaled = total * Counter(log)  # the multiplier
        scaled = scaled + Counter(log)  # the rounding constant
        scaled = scaled + Counter(log)  # the zero point
    count = operation_count(rows, depth, outputs)
    assert count.total_multiplies == log.get("multiply", 0)
    assert count.total_adds == log.get("add", 0)
    assert count.look_ups == count.newton_steps == 0
    assert count.bytes["weights"] == depth * outputs
    assert count.bytes["inputs"] == rows * depth
    assert count.bytes["outputs"] == rows * outputs


def test_paths_differ_where_they_should():
    sizes = (10, 64, 32)
    products = 10 * 64 * 32
    count = {
        path: operation_count(*sizes, path=path, weight_bits=4, product_entries=105 if path == "per-product" else 0)
        for path in PATHS
    }
    assert count["uniform"].multiplies["8x8"] == products
    assert count["level table"].multiplies == count["uniform"].multiplies
    assert count["per-product"].look_ups == products
    assert count["per-product"].total_multiplies == 320  # requantization only
    assert count["power-domain"].multiplies["4x8"] == products
    assert count["lut-gemm"].look_ups == 10 * 32 * 4 * 64 // 8
    assert count["lut-gemm"].bytes["weights"] == 64 * 32 // 2
    assert count["lut-gemm"].bytes["tables"] == 10 * 8 * 256 * 4


def test_decoding_in_the_run_trades_bytes_for_look_ups():
    load = operation_count(1, 256, 128, path="level table", weight_bits=4, weight_table_entries=15)
    run = operation_count(1, 256, 128, path="level table", weight_bits=4, weight_table_entries=15, decode="run")
    assert run.bytes["weights"] * 2 == load.bytes["weights"]
    assert run.look_ups - load.look_ups == 256 * 128
    assert run.bytes["tables"] == 15 and load.bytes["tables"] == 0
    square = operation_count(1, 256, 128, path="q*|q|", weight_bits=4, decode="run")
    assert square.multiplies["4x4"] == 256 * 128 and square.look_ups == 0


def test_narrow_accumulators_change_the_width_of_adds():
    assert set(operation_count(2, 8, 3, accumulator_bits=16).adds) == {"16", "64"}


def test_groups_and_zero_points_cost_something():
    plain = operation_count(5, 64, 8)
    groups = operation_count(5, 64, 8, groups=4)
    zeros = operation_count(5, 64, 8, weight_zero_points=True)
    assert groups.total_multiplies - plain.total_multiplies == 5 * 8 * 4
    assert groups.bytes["scales"] - plain.bytes["scales"] == 5 * 8 * 3
    assert zeros.total_adds - plain.total_adds == 5 * 64 + 5 * 8


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(0, 5)), max_size=5))
def test_counts_add_up(sizes):
    parts = [operation_count(*size, layer=str(i)) for i, size in enumerate(sizes)]
    total = sum(parts, OperationCount())
    assert total.total_multiplies == sum(each.total_multiplies for each in parts)
    assert total.total_bytes == sum(each.total_bytes for each in parts)
    assert len(total.layers) == len(parts)
    frame = total.to_frame()
    if parts:
        assert frame["bytes"].sum() == total.total_bytes
        assert frame["layer"].tolist() == [str(i) for i in range(len(parts))]
        assert (sum(parts)).total_adds == total.total_adds
    assert "bytes" in repr(total)
    assert "<table" in total._repr_html_()


def test_bad_arguments_are_refused():
    with pytest.raises(IntegerError, match="a path is"):
        operation_count(1, 1, 1, path="teleport")
    with pytest.raises(IntegerError, match="0 or more"):
        operation_count(-1, 1, 1)


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({}, "uniform"),
        ({"grid": "power:bits=4,exponent=0.5"}, "q*|q|"),
        ({"grid": "power:bits=4,exponent=0.55"}, "level table"),
        ({"grid": "nf4"}, "level table"),
        ({"grid": "power:bits=4,exponent=0.5", "method": "per-product"}, "per-product"),
        (
            {
                "grid": "power:bits=4,exponent=0.55",
                "activation": "power:bits=4,exponent=0.55",
                "method": "power-domain",
            },
            "power-domain",
        ),
    ],
)
def test_a_run_counts_its_own_path(options, path):
    generator = np.random.default_rng(0)
    run = run_layer(generator.standard_normal((8, 32)), generator.standard_normal((5, 32)), **options)
    assert path_of(run) == path
    count = run.operations
    assert count.layers[0].path == path
    products = 5 * 8 * 32
    if path == "per-product":
        assert count.look_ups == products
    else:
        assert max(count.multiplies.values()) == products
    if path == "power-domain":
        # At least one step for each sum that is not 0.
        assert count.newton_steps >= int((run.sums != 0).sum())
    assert count_run(run, "run").total_bytes <= count.total_bytes + 64


def test_a_grouped_convolution_is_one_layer():
    generator = np.random.default_rng(0)
    window = Window((3, 3), padding=((1, 1), (1, 1)), groups=6)
    run = run_layer(generator.standard_normal((6, 1, 3, 3)), generator.standard_normal((2, 6, 5, 5)), window=window)
    assert len(run.operations.layers) == 1
    assert max(run.operations.multiplies.values()) == 2 * 25 * 6 * 9
    assert run.operations.bytes["inputs"] == 2 * 6 * 25
    assert run.operations.bytes["weights"] == 54


def test_cost_against_error_of_several_choices():
    generator = np.random.default_rng(0)
    weight, inputs = generator.standard_t(5, (16, 64)), generator.standard_normal((20, 64))
    frame = compare_layers(
        weight,
        inputs,
        {
            "W8": {},
            "W4": {"grid": "uniform:bits=4"},
            "W4 power": {"grid": "power:bits=4,exponent=0.5"},
            "W4 products": {"grid": "power:bits=4,exponent=0.5", "method": "per-product"},
        },
        semantics="tflm",
    )
    assert frame.index.tolist() == ["W8", "W4", "W4 power", "W4 products"]
    assert frame["path"].tolist() == ["uniform", "uniform", "q*|q|", "per-product"]
    quality = frame["SQNR integer vs float / dB"]
    assert quality["W8"] > quality["W4 power"] > quality["W4"]  # heavy tails: the power grid is the better 4 bits
    assert quality["W4 power"] == quality["W4 products"]
    assert frame["multiplies"]["W4 products"] < frame["multiplies"]["W4 power"]
    assert (frame["semantics"] == "tflm").all()
    assert compare_layers(weight, inputs, {}).empty


@pytest.mark.parametrize(
    "bad", [{"input_bits": -1}, {"scales": 0.5}, {"accumulator_bits": "32"}, {"newton_steps": True}]
)
def test_counts_are_counts(bad):
    with pytest.raises(IntegerError, match="are integers, 0 or more"):
        operation_count(2, 3, 4, **bad)
