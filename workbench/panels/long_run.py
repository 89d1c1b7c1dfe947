"""Work of a panel that takes seconds to hours: start and stop, how far, how long still, what is kept."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self

import ipywidgets as widgets
import traitlets

from workbench.errors import Cancelled, WorkbenchError
from workbench.panels.panel import BUTTON_LAYOUT
from workbench.panels.state import one_sentence

if TYPE_CHECKING:
    from workbench.panels.jobs import Job
    from workbench.panels.session import Session

#: Seconds between two changes of what a page shows of a run: five a second follow the eye and spare the page.
SHOW_INTERVAL = 0.2
#: No time left is told before this much has passed and this share is done: it would be a guess.
LEAST_SECONDS, LEAST_FRACTION = 1.0, 0.01


class LongRun(traitlets.HasTraits):
    """Settings and results of long work in a session, on the session's worker; get it by ``of(session)``.

    A subclass names its ``kind`` of job and calls ``begin``. Stopping keeps what the work has published so far.
    """

    kind: ClassVar[str] = ""
    """Name of its jobs on the worker."""

    status: str = traitlets.Unicode("idle", read_only=True)  # pyright: ignore[reportAssignmentType]
    """``idle``, ``waiting``, ``running``, ``stopped``, ``done`` or ``failed``."""
    fraction: float = traitlets.Float(0.0, read_only=True)  # pyright: ignore[reportAssignmentType]
    """How far it is, 0 to 1."""
    doing: str = traitlets.Unicode("", read_only=True)  # pyright: ignore[reportAssignmentType]
    """What is being done, how long it took, or why it ended: one line for people."""
    pulse: int = traitlets.Int(0, read_only=True)  # pyright: ignore[reportAssignmentType]
    """Counts up, at most five times a second, when live results have grown."""

    _of: ClassVar[dict[type, weakref.WeakKeyDictionary[Any, Any]]] = {}

    def __init__(self, session: Session) -> None:
        self._session = weakref.ref(session)  # the session keeps its state alive, not the other way round
        self.lock = session.lock
        self._started = 0.0
        self._shown = 0.0
        super().__init__()
        session.observe(self._model_changed, ["model"])
        session.observe(self._worker_changed, ["busy", "paused"])

    @classmethod
    def of(cls, session: Session) -> Self:
        """Return the session's own state of this kind."""
        with session.lock:
            states = LongRun._of.setdefault(cls, weakref.WeakKeyDictionary())
            found = states.get(session)
            if found is None:
                found = states[session] = cls(session)
            return found

    @property
    def session(self) -> Session:
        """The session that it belongs to."""
        alive = self._session()
        if alive is None:
            message = "the session of this panel has gone"
            raise WorkbenchError(message)
        return alive

    @property
    def running(self) -> bool:
        """Whether it waits for the worker or works."""
        return self.status in {"waiting", "running"}

    def complain(self, error: Exception | str) -> None:
        """Show an error as one sentence in the session's message."""
        self.session.complain(error)

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the work is done (scripts and tests); False when ``timeout`` seconds passed first."""
        return self.session.wait(timeout, kinds=(self.kind,))

    # ------------------------------------------------------------------ start and stop

    def begin(self, work: Callable[[Job], str], label: str) -> None:
        """Run ``work(job)`` on the worker; it returns the line that is left when it is done.

        A later ``begin`` of the same kind stops the earlier one.
        """
        with self.lock:
            self._tell("waiting", 0.0, "waiting for the work before it")
            # Behind what follows a slider (sketch, exact error, integer run), before the sweep of all layers.
            self.session.worker.submit(self.kind, lambda job: self._run(job, work), priority=5, label=label)

    def stop(self) -> None:
        """Stop it; what is finished stays."""
        with self.lock:
            if self.running:
                self.session.worker.cancel(self.kind)
                self._tell("stopped", self.fraction, self._stopped_line())

    def kept(self) -> str:
        """Say what a stopped run has kept, e.g. ``3 results kept``; for subclasses."""
        return ""

    def forget(self) -> None:
        """Drop results that belong to the model before; for subclasses."""

    def _run(self, job: Job, work: Callable[[Job], str]) -> None:
        with self.lock:
            job.check()
            self._started = time.monotonic()
            self._tell("running", 0.0, job.label)
        job.announce()
        try:
            line = work(job)
        except Cancelled:
            with self.lock:
                # Not where a later run of the kind has the word, or where another model was opened.
                if self.running and not self.session.worker.has(self.kind):
                    self._tell("stopped", self.fraction, self._stopped_line())
            raise
        except Exception as error:
            with self.lock:
                if not job.stale:
                    self._tell("failed", self.fraction, one_sentence(error))
            return
        with self.lock:
            job.check()
            self._tell("done", 1.0, line)

    def tell(self, job: Job, fraction: float, label: str) -> None:
        """Report from the work: lets urgent jobs pass, raises ``Cancelled`` when stopped, and shows the time left."""
        fraction = min(max(float(fraction), 0.0), 1.0)
        job.progress(fraction, label)
        now = time.monotonic()
        if now - self._shown < SHOW_INTERVAL:
            return
        self._shown = now
        passed = now - self._started
        left = ""
        if passed >= LEAST_SECONDS and fraction >= LEAST_FRACTION:
            left = f" · about {duration(passed * (1.0 - fraction) / fraction)} left"
        with self.lock:
            job.check()
            self._tell("running", fraction, f"{label} · {100 * fraction:.0f} %{left}")
            self.set_trait("pulse", self.pulse + 1)

    def seconds_so_far(self) -> float:
        """Return how long the present run has taken."""
        return time.monotonic() - self._started

    def _tell(self, status: str, fraction: float, doing: str) -> None:
        self.set_trait("fraction", fraction)
        self.set_trait("doing", doing)
        self.set_trait("status", status)

    def _stopped_line(self) -> str:
        return "stopped" + (f" · {kept}" if (kept := self.kept()) else "")

    def _model_changed(self, _change: Any) -> None:
        with self.lock:
            if self.running:
                self.session.worker.cancel(self.kind)
            self.forget()
            self._tell("idle", 0.0, "")

    def _worker_changed(self, _change: Any) -> None:
        """Notice that the session's own Cancel has stopped the work, also where it was still waiting."""
        with self.lock:
            if self.running and not self.session.worker.has(self.kind):
                self._tell("stopped", self.fraction, self._stopped_line())


class RunBar(widgets.HBox):
    """Run and Stop, how far, and one line that says what is being done; it keeps its height whatever happens.

    Args:
        state: the work.
        name: what the first button says.
        start: called when it is pressed.
        tooltip: of the first button.
    """

    def __init__(self, state: LongRun, name: str, start: Callable[[], None], tooltip: str) -> None:
        self._state = state
        self.run = widgets.Button(description=name, tooltip=tooltip, layout=BUTTON_LAYOUT)
        self.run.add_class("qwb-button").add_class("qwb-go")
        self.halt = widgets.Button(
            description="Stop", tooltip="Stop; what is finished stays", disabled=True, layout=BUTTON_LAYOUT
        )
        self.halt.add_class("qwb-button")
        self.bar = widgets.FloatProgress(min=0.0, max=1.0, layout={"width": "120px", "margin": "0", "flex": "0 0 auto"})
        self.text = widgets.HTML(layout={"margin": "0", "flex": "1 1 auto", "min_width": "0"}).add_class("qwb-clip")
        super().__init__(
            [self.run, self.halt, self.bar, self.text],
            layout={"width": "auto", "align_items": "center", "min_height": "30px", "overflow": "hidden"},
        )
        self.add_class("qwb-row")
        self._watches = True
        self.run.on_click(lambda _button: start())
        self.halt.on_click(lambda _button: state.stop())
        state.observe(self._show, ["status", "fraction", "doing"])
        self._show()

    def _show(self, _change: Any = None) -> None:
        state = self._state
        self.halt.disabled = not state.running
        self.bar.value = state.fraction
        self.bar.layout.visibility = "visible" if state.running or state.status == "stopped" else "hidden"
        mark = {"done": "✓ ", "stopped": "■ ", "failed": ""}.get(state.status, "")
        kind = "qwb-error" if state.status == "failed" else "qwb-dim"
        role = "alert" if state.status == "failed" else "status"
        text = _escape(mark + state.doing)
        self.text.value = f'<span class="{kind}" role="{role}" title="{text}">{text}</span>'

    def close(self) -> None:
        """Let go of the work; it goes on."""
        if self._watches:
            self._watches = False
            self._state.unobserve(self._show, ["status", "fraction", "doing"])
        super().close()


def duration(seconds: float) -> str:
    """Return a time for people: ``12 s``, ``3 min``, ``2.5 h``.

    >>> duration(0.4), duration(75), duration(9000)
    ('0.4 s', '75 s', '2.5 h')
    """
    if not math.isfinite(seconds):
        return "?"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _escape(text: str) -> str:
    import html

    return html.escape(text, quote=True)
