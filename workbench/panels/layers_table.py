"""The table of a model's layers as a widget: Python sends columns of numbers, the page unfolds, searches and sorts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import anywidget
import numpy as np
import traitlets

if TYPE_CHECKING:
    from workbench.checkpoints import Layer


class LayersTable(anywidget.AnyWidget):
    """A searchable, sortable tree of layers; ``picked`` and ``compared`` change when the person picks.

    Numbers arrive as float32 arrays in the order of the rows, NaN where nothing is known yet: one small message for a
    batch, whatever the number of layers.
    """

    _esm = Path(__file__).with_name("layers_table.js")
    _css = Path(__file__).with_name("layers_table.css")

    rows = traitlets.Dict({}).tag(sync=True)
    """Columns ``names, kinds, roles, shapes, dtypes, rows, parameters, measured``: lists of equal length."""
    sqnr = traitlets.Bytes(b"").tag(sync=True)
    """float32 for each row: signal to quantization noise in dB."""
    sigma = traitlets.Bytes(b"").tag(sync=True)
    """float32 for each row: largest magnitude over standard deviation."""
    kurtosis = traitlets.Bytes(b"").tag(sync=True)
    """float32 for each row."""
    failures = traitlets.Dict({}).tag(sync=True)
    """Layer name -> why it could not be measured."""
    picked = traitlets.Unicode("").tag(sync=True)
    compared = traitlets.List(traitlets.Unicode()).tag(sync=True)

    def show_layers(self, layers: Mapping[str, Layer], measured: Sequence[str]) -> None:
        """Take the layers of a model; those not in ``measured`` (norms) get no error bar."""
        wanted = set(measured)
        unknown = np.full(len(layers), np.nan, dtype=np.float32).tobytes()
        with self.hold_sync():
            self.sqnr = self.sigma = self.kurtosis = unknown
            self.failures = {}
            self.rows = {
                "names": list(layers),
                "kinds": [layer.kind for layer in layers.values()],
                "roles": [layer.role for layer in layers.values()],
                "shapes": ["×".join(map(str, layer.shape)) for layer in layers.values()],
                "dtypes": [layer.dtype for layer in layers.values()],
                "rows": [layer.weight.shape[0] for layer in layers.values()],
                "parameters": [layer.parameters for layer in layers.values()],
                "measured": [name in wanted for name in layers],
            }

    def column(self, values: Mapping[str, float]) -> bytes:
        """Return the number of each row as float32 bytes, NaN where there is none."""
        return np.array([values.get(name, np.nan) for name in self.rows.get("names", ())], dtype=np.float32).tobytes()
