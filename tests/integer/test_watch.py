from __future__ import annotations

import threading

import numpy as np
import pytest

from workbench.integer.linear import linear, matmul
from workbench.integer.watch import Observation, is_watched, merged, note, watch

X, W = np.full((2, 3), 100, np.int8), np.full((4, 3), 100, np.int8)
SCALES = {"input_scale": 1.0, "weight_scale": 1.0, "output_scale": 1.0}


def test_operators_are_seen_in_the_order_of_their_run():
    with watch() as seen:
        linear(X, W, **SCALES)
        matmul(X, W, transpose_b=True, a_scale=1.0, b_scale=1.0, output_scale=1e4)
    names = [each.operator for each in seen.observations]
    assert names == ["linear", "linear", "matmul", "matmul"]
    sums, codes = seen.observations[:2]
    assert (sums.outputs, sums.accumulator_bits, sums.observed_bits) == (8, 32, 16)
    assert sums.worst_case_bits == 17  # 128 * 300 fits 17 bits
    assert (codes.outputs, codes.saturated, codes.accumulator_bits) == (8, 8, 0)
    assert (seen.saturated, seen.overflows) == (8, 0)


def test_nobody_watches_outside_a_block_even_after_an_error():
    assert not is_watched()
    note(Observation("lost", 1))
    with pytest.raises(RuntimeError), watch():
        assert is_watched()
        raise RuntimeError
    assert not is_watched()


def test_an_inner_block_hides_the_outer_one():
    with watch() as outer:
        with watch() as inner:
            note(Observation("inner", 1, saturated=2, overflows=3))
        note(Observation("outer", 1, saturated=5))
    assert [each.operator for each in outer.observations] == ["outer"]
    assert (inner.saturated, inner.overflows, outer.saturated, outer.overflows) == (2, 3, 5, 0)


def test_another_thread_is_not_seen():
    with watch() as seen:
        thread = threading.Thread(target=lambda: linear(X, W, **SCALES))
        thread.start()
        thread.join()
    assert seen.observations == []


def test_several_steps_count_as_one_operator():
    with watch() as seen:
        with merged("layer"):
            note(Observation("sums", 8, accumulator_bits=32, worst_case_bits=20, observed_bits=9, overflows=1))
            note(Observation("codes", 4, saturated=3, overflows=2))
        with merged("nothing"):
            pass
    assert seen.observations == [Observation("layer", 4, 3, 32, 20, 9, 3), Observation("nothing", 0)]
    with merged("unseen"):
        assert not is_watched()


def test_watching_changes_no_number():
    rng = np.random.default_rng(0)
    x = rng.integers(-128, 128, (9, 40), dtype=np.int8)
    weight = rng.integers(-128, 128, (7, 40), dtype=np.int8)
    plain = linear(x, weight, input_scale=0.1, weight_scale=0.01, output_scale=0.5)
    with watch():
        np.testing.assert_array_equal(linear(x, weight, input_scale=0.1, weight_scale=0.01, output_scale=0.5), plain)
