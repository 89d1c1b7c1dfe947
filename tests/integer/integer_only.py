"""Watch a run from inside: every operator's and every kernel's arrays must have an integer type."""

from __future__ import annotations

import sys
from contextlib import contextmanager

import numpy as np

from workbench.integer.operators import OPERATORS


def assert_integer(thing, where):
    """Refuse floating-point arrays anywhere in arguments or results."""
    if isinstance(thing, np.ndarray):
        assert thing.dtype.kind in "iub", f"{where} holds a {thing.dtype} array {thing.shape}"
    elif isinstance(thing, tuple | list):
        for each in thing:
            assert_integer(each, where)
    elif isinstance(thing, dict):
        for each in thing.values():
            assert_integer(each, where)


@contextmanager
def only_integers(monkeypatch):
    """Check arguments and results of every ``Operator.integer`` and of every compiled function that operators call."""
    calls = {"operators": 0, "kernels": 0}

    def checked(function, where, counter):
        def call(*arguments, **named):
            calls[counter] += 1
            assert_integer([each for each in arguments if not hasattr(each, "operator")], where)
            assert_integer(named, where)
            result = function(*arguments, **named)
            assert_integer(result, f"the result of {where}")
            return result

        return call

    with monkeypatch.context() as patch:
        for name, operator in OPERATORS.items():
            patch.setattr(operator, "integer", checked(operator.integer, name, "operators"), raising=False)
        for module in [each for name, each in sys.modules.items() if name.startswith("workbench.integer")]:
            for attribute, function in list(vars(module).items()):
                home = getattr(function, "__module__", None) or ""
                if callable(function) and home.startswith("workbench.kernels") and not isinstance(function, type):
                    patch.setattr(module, attribute, checked(function, f"{home}.{attribute}", "kernels"))
        yield calls


def check_run(model, inputs, monkeypatch):
    """Run a model, everything kept, and assert that all between input quantizer and results is integers."""
    for node in model.graph.nodes:
        assert_integer(dict(node.constants), f"node {node.name}")
    with only_integers(monkeypatch) as calls:
        run = model.run(inputs, keep=True)
    assert set(run.codes) == set(model.graph.values)
    for name, codes in run.codes.items():
        assert codes.dtype.kind in "iub", f"{name} is {codes.dtype}"
        if not model.values[name].index:
            assert codes.dtype == model.values[name].dtype, name
    assert calls["operators"] == len(model.graph.nodes)
    assert calls["kernels"] > 0
    return run
