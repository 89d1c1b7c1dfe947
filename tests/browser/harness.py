"""Drive JupyterLab and Voilà in Chromium: servers on a free local port, and a page that knows notebooks.

Used by the browser tests and by ``docs/make_screenshots.py``. Servers get folders of their own for settings, data, runtime
files and sketches, so a run neither sees nor changes what the person at this machine has.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import nbformat
from playwright.sync_api import TimeoutError as PlaywrightTimeout

import workbench
from workbench.resources import notebooks_path

LAUNCH_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]

# A news toast would cover the page; cells outside the window would not be in the document.
LAB_SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}

# Not ours: JupyterLab probes for files that a fresh settings folder does not have, Voilà's page asks for web fonts.
HARMLESS = re.compile(
    r"favicon|/api/workspaces|Failed to load resource.*(404|403|[./]font)|ResizeObserver loop|service worker", re.I
)
LATENCY_FILE = "latency.json"


def free_port() -> int:
    """Ask the system for a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A JupyterLab or Voilà process over a temporary folder of notebooks; a context manager."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "notebooks"
        self.folder.mkdir(parents=True, exist_ok=True)
        for notebook in sorted(notebooks_path().glob("*.ipynb")):
            shutil.copy(notebook, self.folder / notebook.name)
        self.port = free_port()
        self.token = secrets.token_hex(16)
        self.log = root / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """Return the command line."""
        raise NotImplementedError

    def ready_url(self) -> str:
        """Return an address that answers 200 once the server is up."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Return the process's environment: isolated folders, the workbench under test, no network."""
        folders = {
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
            "IPYTHONDIR": "ipython",
        }
        isolated = {name: str(self.root / folder) for name, folder in folders.items()}
        for path in isolated.values():
            Path(path).mkdir(parents=True, exist_ok=True)
        for plugin, values in LAB_SETTINGS.items():
            package, name = plugin.split(":")
            file = self.root / "settings" / package / f"{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values))
        source = str(Path(workbench.__file__).resolve().parent.parent)
        return {
            **os.environ,
            **isolated,
            "WORKBENCH_CACHE": os.environ.get("WORKBENCH_CACHE", str(self.root / "cache")),
            "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")])),
            "JUPYTER_TOKEN": self.token,
            "HF_HUB_OFFLINE": "1",
            "JUPYTER_PREFER_ENV_PATH": "1",
        }

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self.command(), cwd=self.folder, env=self.environment(), stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(self.ready_url(), timeout=5) as answer:
                    if answer.status == 200:
                        return self
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
        self.__exit__(None, None, None)
        raise RuntimeError(f"the server did not come up; its log ends:\n{self.log.read_text()[-3000:]}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def copy_notebook(self, shipped: str, name: str) -> Path:
        """Copy a shipped notebook, as it ships, into the served folder under a name of its own.

        A test that saves its page must not save what others open: the saved outputs name widgets of a kernel that is gone.
        """
        return Path(shutil.copy(notebooks_path() / shipped, self.folder / name))

    def write_notebook(self, name: str, cells: Iterable[str]) -> Path:
        """Write a notebook of code cells into the served folder."""
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(source) for source in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        )
        path = self.folder / name
        nbformat.write(notebook, path)
        return path


class LabServer(Server):
    """JupyterLab, as ``jupyter lab`` starts it, without browser, news and encryption warnings."""

    def command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "jupyterlab"),
            "--no-browser",
            "--ip=127.0.0.1",
            f"--port={self.port}",
            "--ServerApp.port_retries=0",
            f"--ServerApp.root_dir={self.folder}",
            "--allow-root",
            "--LabApp.expose_app_in_browser=True",
            "--LabApp.news_url=None",
            "--LabApp.extension_manager=readonly",
            "--KernelManager.transport=ipc",
        ]

    def ready_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api?token={self.token}"

    def url(self, notebook: str) -> str:
        """Return the address that opens a notebook of the served folder in a clean workspace."""
        return f"http://127.0.0.1:{self.port}/lab/tree/{notebook}?token={self.token}&reset"


class VoilaServer(Server):
    """Voilà over the same folder: the notebooks as apps."""

    def command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "voila"),
            "--no-browser",
            "--Voila.ip=127.0.0.1",
            f"--port={self.port}",
            f"--token={self.token}",
            "--KernelManager.transport=ipc",
            str(self.folder),
        ]

    def ready_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/?token={self.token}"

    def url(self, notebook: str) -> str:
        """Return the address that renders a notebook."""
        return f"http://127.0.0.1:{self.port}/voila/render/{notebook}?token={self.token}"


class WatchedPage:
    """A browser page that collects console errors and the kernel messages that the browser sends."""

    def __init__(self, page: Any, screenshots: Path) -> None:
        self.page = page
        self.screenshots = screenshots
        self.errors: list[str] = []
        self.kernel_messages: list[str] = []
        page.set_default_timeout(60_000)
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("websocket", self._on_websocket)

    def _on_console(self, message: Any) -> None:
        text = f"{message.text} {message.location.get('url', '')}".strip()
        if message.type == "error" and not HARMLESS.search(text):
            self.errors.append(text)

    def _on_websocket(self, websocket: Any) -> None:
        if "/channels" in websocket.url:
            websocket.on("framesent", lambda payload: self.kernel_messages.append(message_type(payload)))

    @contextmanager
    def sent_to_kernel(self) -> Iterator[list[str]]:
        """Collect the types of the messages that the notebook sends to a kernel inside the ``with`` block."""
        sent: list[str] = []
        before = len(self.kernel_messages)
        yield sent
        self.page.evaluate("() => 0")  # a round trip: events up to here have arrived
        sent.extend(message for message in self.kernel_messages[before:] if message not in ASKED_BY_JUPYTERLAB)

    def screenshot(self, name: str, selector: str | None = None) -> Path:
        """Save a picture of the page, or of the first element that matches; return its path."""
        self.screenshots.mkdir(parents=True, exist_ok=True)
        path = self.screenshots / f"{name}.png"
        target = self.page.locator(selector).first if selector else self.page
        target.screenshot(path=str(path))
        return path


#: JupyterLab asks these by itself, whenever it likes: its debugger, and its look at the kernel after a start.
ASKED_BY_JUPYTERLAB = {"debug_request", "kernel_info_request", "comm_info_request"}


class LabPage(WatchedPage):
    """A page in JupyterLab."""

    def __init__(self, page: Any, server: LabServer, screenshots: Path) -> None:
        super().__init__(page, screenshots)
        self.server = server

    def open_notebook(self, name: str) -> None:
        """Open a notebook of the served folder and wait until its kernel idles."""
        self.page.goto(self.server.url(name))
        self.wait_for_kernel()

    def wait_for_kernel(self) -> None:
        """Wait until the current notebook's kernel is there and idle."""
        self.page.wait_for_function(
            "() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'",
            timeout=120_000,
        )

    def reload(self, selector: str) -> None:
        """Reload the page and wait until its widgets are back.

        A browser asks a kernel for all widgets at once and gives up after four seconds (ipywidgets' manager); on a machine
        so busy that the kernel takes longer a person reloads again, and so does this, twice at most.
        """
        for patience in (30_000, 30_000, 60_000):
            self.page.reload()
            self.wait_for_kernel()
            try:
                self.page.locator(selector).first.wait_for(timeout=patience)
            except PlaywrightTimeout:
                if patience == 60_000:
                    raise
            else:
                return

    def run_all(self) -> None:
        """Run every cell and wait for the last; raises ``AssertionError`` with the traceback where a cell fails."""
        self.command("notebook:run-all-cells")
        outputs = self.page.evaluate(
            "() => [...window.jupyterapp.shell.currentWidget.content.model.cells]"
            ".filter(c => c.type === 'code').flatMap(c => c.outputs.toJSON()).filter(o => o.output_type === 'error')"
        )
        assert not outputs, re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(outputs[0]["traceback"]))

    def command(self, name: str, **arguments: Any) -> Any:
        """Execute a JupyterLab command, e.g. ``docmanager:save``."""
        return self.page.evaluate(
            "async ([name, args]) => { await window.jupyterapp.commands.execute(name, args); }", [name, arguments]
        )

    def theme(self, name: str) -> None:
        """Switch the theme: ``JupyterLab Light`` or ``JupyterLab Dark``."""
        self.command("apputils:change-theme", theme=name)
        light = "true" if "Light" in name else "false"
        self.page.wait_for_function(f"() => document.body.dataset.jpThemeLight === '{light}'")

    def hide_chrome(self) -> None:
        """Give the notebook the whole window: no file browser, no right bar."""
        self.page.evaluate("() => { const s = window.jupyterapp.shell; s.collapseLeft(); s.collapseRight(); }")

    def python(self, code: str) -> str:
        """Run code in the notebook's kernel and return what it printed; raises ``AssertionError`` where it fails."""
        answer = self.page.evaluate(
            """async (code) => {
                const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
                const future = kernel.requestExecute({code, store_history: false});
                let text = '', failure = '';
                future.onIOPub = (message) => {
                    if (message.header.msg_type === 'stream') text += message.content.text;
                    if (message.header.msg_type === 'error') failure = message.content.traceback.join('\\n');
                };
                await future.done;
                return {text, failure};
            }""",
            code,
        )
        assert not answer["failure"], re.sub(r"\x1b\[[0-9;]*m", "", answer["failure"])
        return answer["text"]

    def shutdown(self) -> None:
        """Stop the notebook's kernel: a live one would replay all its widgets into the next page."""
        self.page.evaluate("async () => { await window.jupyterapp?.shell?.currentWidget?.sessionContext?.shutdown(); }")


def message_type(payload: str | bytes) -> str:
    """Return the type of a kernel message from a websocket frame, in Jupyter's JSON or its binary framing."""
    raw = payload if isinstance(payload, bytes) else payload.encode()
    found = re.search(rb'"msg_type"\s*:\s*"(\w+)"', raw)
    return found.group(1).decode() if found else "unknown"
