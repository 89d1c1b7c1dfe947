"""The live grid: one small ES module that computes the error of any grid from a sketch, inside the browser."""

from workbench.panels.live.widget import LiveGrid

__all__ = ["LiveGrid"]
