import json
import math
import pickle

import numpy as np
import pytest

from workbench.quantization import ErrorReport


def report(**changes):
    given = {"count": 4, "error": 0.04, "weight": 4.0, "cross": 3.9, "decoded": 3.84, "max_abs": 0.2, "max_steps": 0.5}
    return ErrorReport.from_sums(**{**given, **changes})


def test_numbers_follow_from_the_sums():
    r = report()
    assert r.mse == pytest.approx(0.01)
    assert r.rmse == pytest.approx(0.1)
    assert r.sqnr_db == pytest.approx(20.0)
    assert r.relative == pytest.approx(0.01)
    assert r.cosine == pytest.approx(3.9 / math.sqrt(4.0 * 3.84))
    assert (r.max_abs, r.max_steps, r.count, r.approximate, r.bound) == (0.2, 0.5, 4, False, 0.0)
    assert report(total=8.0).mse == pytest.approx(0.005)


def test_the_ends_of_the_scale():
    nothing = report(error=0.0, weight=0.0, cross=0.0, decoded=0.0)
    assert (nothing.mse, nothing.sqnr_db, nothing.cosine, nothing.relative) == (0.0, math.inf, 1.0, 0.0)
    exact = report(error=0.0, cross=4.0, decoded=4.0)
    assert (exact.sqnr_db, exact.cosine) == (math.inf, 1.0)
    lost = report(error=4.0, cross=0.0, decoded=0.0)
    assert (lost.sqnr_db, lost.cosine) == (0.0, 0.0)
    invented = report(error=4.0, weight=0.0, cross=0.0, decoded=4.0)
    assert (invented.sqnr_db, invented.cosine) == (-math.inf, 0.0)
    assert report(error=-1e-18).mse == 0.0  # a sketch's sums may cancel to just below zero
    assert report(cross=4.0 * (1 + 1e-15), decoded=4.0).cosine == 1.0
    tiny = report(error=1e-310, weight=1e-300)
    assert tiny.sqnr_db == pytest.approx(100.0)


def test_repr_and_html_are_short_and_say_what_is_approximate():
    exact, sketched = report(), report(approximate=True, bound=0.0012)
    assert repr(exact) == "ErrorReport(mse=0.01, sqnr=20.00 dB, cosine=0.995105, max=0.2, 0.5 steps, 4 weights)"
    assert "mse≈0.01 (within 0.0012)" in repr(sketched)
    assert "= 0.01" in exact._repr_html_()
    assert "≈ 0.01 ± 0.12 %" in sketched._repr_html_()
    assert exact._repr_html_().count("<tr>") == 5
    assert "not measured" in report(max_abs=math.nan, max_steps=math.nan)._repr_html_()
    assert "nan" not in repr(report(max_abs=math.nan, max_steps=math.nan))
    assert (exact.badge, sketched.badge) == ("=", "≈")


def test_frames_dicts_pickles_and_equality():
    channels = np.array([0.02, 0.0])
    r = report(per_channel=channels)
    assert json.loads(json.dumps(r.to_dict()))["mse"] == pytest.approx(0.01)
    assert report().to_frame().loc[0, "sqnr_db"] == pytest.approx(20.0)
    frame = r.to_frame()
    assert frame.index.name == "channel"
    np.testing.assert_array_equal(frame["mse"], channels)
    again = pickle.loads(pickle.dumps(r))
    assert again == r
    np.testing.assert_array_equal(again.per_channel, channels)
    assert report() == r  # the numbers decide; per-channel detail is optional
    assert len({report(), r}) == 1
