"""After warming up, nothing that a first drag does has to be compiled."""

import pytest

from workbench.errors import Cancelled
from workbench.kernels.warm import warm_up

_PROGRAM = """
import sys
import ml_dtypes, numpy as np
from numba.core.dispatcher import Dispatcher
from workbench.kernels.warm import DTYPES, warm_up

def compiled():
    found = {}
    for name, module in list(sys.modules.items()):
        if name.startswith("workbench.kernels"):
            for key, item in vars(module).items():
                if isinstance(item, Dispatcher):
                    found[name, key] = len(item.signatures)
    return found

warm_up()
before = compiled()
from workbench.grids import PowerGrid, UniformGrid, parse_grid
from workbench.quantization import *
w = np.random.default_rng(0).standard_normal((32, 256))
for dtype in DTYPES:
    layer = w.astype(dtype)
    for granularity in ("tensor", "channel", "group:64"):
        for text in ("uniform:bits=4", "uniform:bits=8,range=full", "uniform:bits=4,range=asymmetric",
                     "power:bits=3,exponent=0.4", "power:bits=8,exponent=0.4", "nf4", "mxfp4"):
            grid = parse_grid(text)
            made = sketch_for(layer, grid, granularity)
            for clip in (1.0, 0.5):
                if made.clips_freely or clip == 1.0:
                    sketch_error(made, grid, clip)
                    occupancy(made, grid, clip)
                exact_error(layer, grid, granularity, clip=clip)
            if granularity == "group:64":
                exact_error(layer, grid, granularity, scale="mse")
        made = sketch(layer, granularity)
        landscape(made, 4)
        search_exponent(made, 4, clip="joint")
        best_clip(made, grid if made.exact else PowerGrid(4, 0.5))
    weight_statistics(layer); weight_map(layer, 8, 8); histogram(layer, 10); qq_points(layer); largest_weights(layer, 3)
after = compiled()
print({key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)})
"""


@pytest.mark.slow
def test_nothing_is_left_to_compile(fresh_python):
    assert fresh_python(_PROGRAM).strip() == "{}"


def test_warming_up_tells_its_progress_and_can_be_cancelled():
    told = []

    def stop(fraction):
        told.append(fraction)
        if len(told) == 3:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        warm_up(stop)
    assert told == sorted(told)
    assert 0.0 < told[-1] < 1.0
