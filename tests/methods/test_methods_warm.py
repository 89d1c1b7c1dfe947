"""After the warm-up no method compiles a kernel any more."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import numpy as np
from numba.core import event
from workbench.methods.warm import warm_up
warm_up()
compiled = []
class Listener(event.Listener):
    def on_start(self, found): compiled.append(found)
    def on_end(self, found): pass
from workbench.methods.layer import quantize_layer
from workbench.methods import all_methods
generator = np.random.default_rng(1)
weight = generator.standard_normal((16, 96)).astype(np.float32)
inputs = generator.standard_normal((200, 96)).astype(np.float32)
with event.install_listener("numba:compile", Listener()):
    for word in ("rtn-clip", "powerquant:joint=true", "gptq:act_order=true,refine=2", "adaround:steps=4", "nupes:steps=4"):
        quantize_layer(weight, word, "power:bits=3,exponent=search", inputs=inputs, granularity="group:32")
print(len(compiled))
"""


def test_nothing_is_left_to_compile():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0"]
