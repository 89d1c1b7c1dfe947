"""Every method that ``parse_method`` knows, imported in the order in which lists show them."""

from workbench.methods import (
    nearest,
)

__all__ = ["nearest"]
