"""Build hook: a wheel carries the notebooks and the demo models; an editable install uses those of the checkout."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SHARED = ("notebooks", "data/tiny-gemma3", "data/tiny-resnet", "data/tiny_resnet.py", "data/text")


class SharedFilesHook(BuildHookInterface):
    """Put ``SHARED`` under ``workbench/_share`` (a static ``force-include`` would copy them on editable installs too)."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the folders to a standard wheel."""
        if version != "editable":
            build_data["force_include"].update({folder: f"workbench/_share/{folder}" for folder in SHARED})
