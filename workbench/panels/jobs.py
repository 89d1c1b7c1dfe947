"""Work that takes longer than a callback may: one thread, the latest request of a kind wins, urgent work goes first.

The thread starts with the first job, ends by itself when nothing has come for a while, and ends at once on ``close``;
so a forgotten session leaks none. A job function takes the ``Job`` and either returns, or is a generator: between its
steps (and inside them, wherever it reports progress) more urgent jobs go ahead.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from workbench.errors import Cancelled

#: Seconds between two progress reports: ten a second are enough for the eye and far below Jupyter's message limit.
REPORT_INTERVAL = 0.1
#: A job shorter than this stays silent: a busy line that flashes up is noise.
SILENT_SECONDS = 0.25

JobFunction = Callable[["Job"], Generator[None, None, None] | None]


@dataclass(eq=False)
class Job:
    """One request to the worker; its function asks ``check`` before it publishes anything."""

    kind: str
    function: JobFunction
    priority: int
    due: float
    label: str
    worker: Worker
    stale: bool = False
    started: float = 0.0
    reported: float = 0.0
    steps: Generator[None, None, None] | None = field(default=None, repr=False)

    def check(self) -> None:
        """Raise ``Cancelled`` where a later request or a person has made this one pointless."""
        if self.stale:
            message = f"{self.label or self.kind} was stopped"
            raise Cancelled(message)

    def progress(self, fraction: float, label: str | None = None) -> None:
        """Report how far the job is (0 to 1), let more urgent jobs pass, and stop here if cancelled."""
        if label is not None:
            self.label = label
        self.worker.breathe(self)
        now = time.monotonic()
        if now - self.started >= SILENT_SECONDS and now - self.reported >= REPORT_INTERVAL:
            self.reported = now
            self.worker.report(self.label, min(max(float(fraction), 0.0), 1.0))

    def announce(self) -> None:
        """Show the job as busy at once: it will take long and cannot say how far it is."""
        self.reported = time.monotonic()
        self.worker.report(self.label, 0.0)


class Worker:
    """A single daemon thread that works off jobs by priority (0 is the most urgent).

    Args:
        report: called on the worker with (label, fraction) at most ten times a second, and with ("", 0) when done.
        fail: called on the worker with the exception of a job that failed.
        idle_seconds: the thread ends after this long without a job; the next job starts another.
    """

    def __init__(
        self,
        report: Callable[[str, float], None],
        fail: Callable[[Exception], None],
        idle_seconds: float = 5.0,
    ) -> None:
        self.report = report
        self._fail = fail
        self._idle_seconds = idle_seconds
        self._condition = threading.Condition()
        self._pending: dict[str, Job] = {}
        self._running: list[Job] = []
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def thread(self) -> threading.Thread | None:
        """The live thread, or None while there is nothing to do."""
        return self._thread

    def submit(
        self, kind: str, function: JobFunction, *, priority: int = 5, delay: float = 0.0, label: str = ""
    ) -> Job | None:
        """Queue a job after ``delay`` seconds; an earlier job of the same kind, queued or running, becomes stale.

        Returns None once the worker is closed.
        """
        with self._condition:
            if self._closed:
                return None
            self._retire(kind)
            job = Job(kind, function, priority, time.monotonic() + delay, label, self)
            self._pending[kind] = job
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="workbench-worker", daemon=True)
                self._thread.start()
            self._condition.notify_all()
            return job

    def cancel(self, *kinds: str) -> None:
        """Make the jobs of these kinds (all, without arguments) stale: queued ones go, a running one stops soon."""
        with self._condition:
            for kind in kinds or {*self._pending, *(job.kind for job in self._running)}:
                self._retire(kind)
            self._condition.notify_all()

    def has(self, *kinds: str) -> bool:
        """Return whether a job of one of these kinds is queued or running."""
        with self._condition:
            live = {*self._pending, *(job.kind for job in self._running if not job.stale)}
            return not live.isdisjoint(kinds)

    def wait(self, timeout: float | None = None, kinds: tuple[str, ...] = ()) -> bool:
        """Block until nothing (of these kinds) is queued or running; return False when ``timeout`` seconds passed."""
        with self._condition:
            return self._condition.wait_for(lambda: self._is_done(kinds), timeout)

    def close(self, timeout: float = 10.0) -> None:
        """Stop all jobs and end the thread; waits for it, up to ``timeout`` seconds, unless called on it."""
        with self._condition:
            self._closed = True
            thread = self._thread
            for kind in {*self._pending, *(job.kind for job in self._running)}:
                self._retire(kind)
            self._condition.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def breathe(self, job: Job) -> None:
        """Run, inside ``job``, whatever is due and more urgent; raise ``Cancelled`` if that made ``job`` stale."""
        while not job.stale:
            with self._condition:
                urgent = self._next(below=job.priority)
                if urgent is None:
                    break
                self._take(urgent)
            self._step(urgent)
        job.check()

    def _is_done(self, kinds: tuple[str, ...]) -> bool:
        live = [*self._pending.values(), *self._running]
        return not any(job.kind in kinds or not kinds for job in live)

    def _retire(self, kind: str) -> None:
        queued = self._pending.pop(kind, None)
        if queued is not None:
            queued.stale = True
        for job in self._running:
            if job.kind == kind:
                job.stale = True

    def _next(self, below: float = float("inf")) -> Job | None:
        now = time.monotonic()
        due = [job for job in self._pending.values() if job.priority < below and job.due <= now]
        return min(due, key=lambda job: (job.priority, job.due), default=None)

    def _take(self, job: Job) -> None:
        del self._pending[job.kind]
        self._running.append(job)

    def _loop(self) -> None:
        while True:
            with self._condition:
                job = self._await_job()
                if job is None:
                    self._thread = None
                    return
                self._take(job)
            self._step(job)
            del job  # while waiting for the next one, nothing of this one (its session) may be kept alive

    def _await_job(self) -> Job | None:
        """Wait for a due job; None when the worker closed or idled out (called with the condition held)."""
        patience = time.monotonic() + self._idle_seconds
        while not self._closed:
            job = self._next()
            if job is not None:
                return job
            now = time.monotonic()
            if self._pending:
                self._condition.wait(max(0.0, min(job.due for job in self._pending.values()) - now))
            elif now < patience:
                self._condition.wait(patience - now)
            else:
                return None
        return None

    def _step(self, job: Job) -> None:
        """Run a job, or one step of it, that has been taken off the queue."""
        more = False
        try:
            job.started = job.started or time.monotonic()
            job.check()
            if job.steps is None:
                outcome = job.function(job)
                if inspect.isgenerator(outcome):
                    job.steps, more = outcome, True
            else:
                next(job.steps)
                more = True
        except (StopIteration, Cancelled):
            pass  # the last step is done, or nobody wants the rest: either way the job ends below, and that is no error
        except Exception as error:
            if not job.stale:
                self._tell(self._fail, error)
        finally:
            self._put_back_or_end(job, more)

    def _put_back_or_end(self, job: Job, more: bool) -> None:
        # The listener takes the session's lock, whose holder may be waiting to submit: never call it with ours held.
        told = job.reported > 0 and (job.stale or not more)
        if told:
            self._tell(self.report, "", 0.0)
        with self._condition:
            self._running.remove(job)
            goes_on = more and not job.stale
            if goes_on:
                self._pending[job.kind] = job
            else:
                job.steps = None
            self._condition.notify_all()
        if job.reported > 0 and not goes_on and not told:
            self._tell(self.report, "", 0.0)

    @staticmethod
    def _tell(listener: Callable[..., Any], *arguments: Any) -> None:
        """Call a listener; one that fails itself (a widget whose page is gone) must not end the thread."""
        try:
            listener(*arguments)
        except Exception:
            return
