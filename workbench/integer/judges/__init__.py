"""Judges: independent packages that our integers are compared with, and what builds and runs their models."""

from workbench.integer.judges.running import JUDGES, MODELS, Judge, run_judges
from workbench.integer.judges.table import JudgeRow, JudgeTable

__all__ = ["JUDGES", "MODELS", "Judge", "JudgeRow", "JudgeTable", "run_judges"]
