from __future__ import annotations

import numpy as np
import pytest

from workbench.errors import QuantizationError
from workbench.grids import UniformGrid
from workbench.quantization import bits_per_weight, error, quantize
from workbench.quantization.contenders import EQUAL_BITS, contest, measured


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    return (0.02 * np.random.default_rng(8).standard_t(5, (64, 512))).astype(np.float32)


@pytest.mark.parametrize(
    ("bits", "granularity"), [(2, "tensor"), (3, "channel"), (4, "channel"), (4, "group:32"), (8, "channel")]
)
def test_each_kind_runs_once_at_the_clip_that_suits_it(weights: np.ndarray, bits: int, granularity: str) -> None:
    held = contest(weights, bits, granularity)
    names = [str(c.grid) for c in held.contenders]
    assert len(names) == len(set(names)) >= 7
    assert [c.report.mse for c in held.contenders] == sorted(c.report.mse for c in held.contenders)
    for contender in held.contenders:
        assert contender.bits_per_weight == bits_per_weight(contender.grid, granularity, weights.shape)
        judge = error(weights, quantize(weights, contender.grid, granularity, clip=contender.clip))
        assert contender.report.mse == pytest.approx(judge.mse, rel=max(contender.report.bound, 1e-9))
        whole = error(weights, quantize(weights, contender.grid, granularity))
        assert judge.mse <= whole.mse * (1 + 1e-3)


def test_best_keeps_to_the_budget(weights: np.ndarray) -> None:
    held = contest(weights, 4, "group:32")
    own = held.uniform.bits_per_weight
    assert own == 5.0
    assert held.best().bits_per_weight <= own + EQUAL_BITS
    assert held.best(6.0) is held.contenders[0]
    tight = held.best(4.25)
    assert tight.bits_per_weight == 4.25  # the MX format alone fits
    assert str(tight.grid) == "mxfp4"
    assert held.best(1.0).bits_per_weight == min(c.bits_per_weight for c in held.contenders)


@pytest.mark.parametrize("rule", ["absmax", "mse"])
def test_measured_is_the_exact_error(weights: np.ndarray, rule: str) -> None:
    held = contest(weights, 4)
    found = measured(weights, held.uniform, "channel", rule)
    clip = held.uniform.clip if rule == "absmax" else 1.0
    judge = error(weights, quantize(weights, UniformGrid(bits=4), "channel", scale=rule, clip=clip))
    assert found.report.mse == pytest.approx(judge.mse, rel=1e-9)
    assert not found.report.approximate
    assert found.report.per_channel is not None
    if rule == "mse":
        assert found.report.mse <= held.uniform.report.mse


def test_progress_is_told_and_can_cancel(weights: np.ndarray) -> None:
    told: list[float] = []
    contest(weights, 3, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0

    def stop(_done: float) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        contest(weights, 3, progress=stop)


def test_table_and_bad_bits(weights: np.ndarray) -> None:
    table = contest(weights, 3).to_frame()
    assert {"grid", "clip", "mse", "sqnr_db", "bits_per_weight"} == set(table.columns)
    with pytest.raises(QuantizationError, match="2 to 8 bits, not 9"):
        contest(weights, 9)
