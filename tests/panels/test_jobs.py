"""The worker: latest wins, urgent first, progress, cancel, and a thread that never outlives its use."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest

from workbench.errors import Cancelled
from workbench.panels.jobs import Job, Worker


class Notes:
    """What a worker told its listeners."""

    def __init__(self):
        self.reports = []
        self.failures = []

    def report(self, label, fraction):
        self.reports.append((label, fraction))


@pytest.fixture
def notes():
    return Notes()


@pytest.fixture
def worker(notes):
    made = Worker(notes.report, notes.failures.append, idle_seconds=0.2)
    yield made
    made.close()


def test_the_latest_request_of_a_kind_wins(worker):
    gate, entered, done = threading.Event(), threading.Event(), []

    def blocker(_job):
        entered.set()
        gate.wait(10)

    worker.submit("blocker", blocker)
    assert entered.wait(10)
    for number in range(5):
        worker.submit("answer", lambda _job, number=number: done.append(number))
    gate.set()
    assert worker.wait(10)
    assert done == [4]


def test_a_running_job_learns_that_it_is_stale(worker, notes):
    entered, superseded, published = threading.Event(), threading.Event(), []

    def first(job: Job):
        entered.set()
        superseded.wait(10)
        job.check()
        published.append("first")

    worker.submit("answer", first)
    assert entered.wait(10)
    worker.submit("answer", lambda _job: published.append("second"))
    superseded.set()
    assert worker.wait(10)
    assert published == ["second"]
    assert notes.failures == []  # being superseded is no failure


def test_urgent_jobs_pass_between_the_steps_of_a_long_one(worker):
    order, started = [], threading.Event()

    def long(_job):
        for step in range(3):
            order.append(f"step {step}")
            if step == 0:
                started.set()
                submitted.wait(10)
            yield

    submitted = threading.Event()
    worker.submit("long", long, priority=8)
    assert started.wait(10)
    worker.submit("urgent", lambda _job: order.append("urgent"), priority=1)
    submitted.set()
    assert worker.wait(10)
    assert order == ["step 0", "urgent", "step 1", "step 2"]


def test_urgent_jobs_pass_inside_a_step_that_reports_progress(worker):
    order, started, submitted = [], threading.Event(), threading.Event()

    def long(job: Job):
        started.set()
        submitted.wait(10)
        job.progress(0.5)
        order.append("long")

    worker.submit("long", long, priority=8)
    assert started.wait(10)
    worker.submit("less urgent", lambda _job: order.append("less urgent"), priority=9)
    worker.submit("urgent", lambda _job: order.append("urgent"), priority=1)
    submitted.set()
    assert worker.wait(10)
    assert order == ["urgent", "long", "less urgent"]


def test_cancel_stops_a_job_at_its_next_progress(worker):
    entered, seen = threading.Event(), []

    def endless(job: Job):
        entered.set()
        try:
            while True:
                job.progress(0.0)
        except Cancelled:
            seen.append("cancelled")
            raise

    worker.submit("endless", endless)
    assert entered.wait(10)
    assert worker.has("endless")
    worker.cancel()
    assert worker.wait(10)
    assert seen == ["cancelled"]


def test_a_cancelled_generator_does_not_come_back(worker):
    steps, first = [], threading.Event()

    def long(_job):
        while True:
            steps.append(len(steps))
            first.set()
            yield

    worker.submit("long", long)
    assert first.wait(10)
    worker.cancel("long")
    assert worker.wait(10)
    count = len(steps)
    worker.submit("other", lambda _job: None)
    assert worker.wait(10)
    assert len(steps) == count


def test_failures_are_told_and_the_worker_goes_on(worker, notes):
    worker.submit("bad", lambda _job: 1 // 0)
    assert worker.wait(10)
    assert [type(error) for error in notes.failures] == [ZeroDivisionError]
    done = []
    worker.submit("good", lambda _job: done.append(True))
    assert worker.wait(10)
    assert done == [True]


def test_a_listener_that_fails_does_not_end_the_worker():
    def broken(*_):
        raise RuntimeError("the page is gone")

    worker = Worker(broken, broken)
    worker.submit("bad", lambda _job: 1 // 0)
    assert worker.wait(10)
    done = []
    worker.submit("good", lambda _job: done.append(True))
    assert worker.wait(10)
    assert done == [True]
    worker.close()


def test_progress_is_told_at_most_ten_times_a_second(worker, notes):
    def long(job: Job):
        job.started -= 1.0  # as if it had been at work for a second
        stop = time.monotonic() + 0.35
        while time.monotonic() < stop:
            job.progress(0.5)

    worker.submit("long", long, label="measuring")
    assert worker.wait(10)
    shown = [report for report in notes.reports if report[0]]
    assert 1 <= len(shown) <= 5
    assert notes.reports[-1] == ("", 0.0)


def test_short_jobs_stay_silent(worker, notes):
    worker.submit("short", lambda job: job.progress(0.5), label="blink")
    assert worker.wait(10)
    assert notes.reports == []


def test_a_delayed_job_waits_and_is_replaced(worker):
    done = []
    worker.submit("rest", lambda _job: done.append("first"), delay=30.0)
    worker.submit("rest", lambda _job: done.append("second"), delay=0.01)
    assert worker.wait(10)
    assert done == ["second"]


def test_the_thread_ends_when_idle_and_starts_again(worker):
    worker.submit("one", lambda _job: None)
    assert worker.wait(10)
    thread = worker.thread
    if thread is not None:
        thread.join(10)
        assert not thread.is_alive()
    done = []
    worker.submit("two", lambda _job: done.append(threading.current_thread()))
    assert worker.wait(10)
    assert done[0] is not thread


def test_close_ends_the_thread_and_refuses_more(notes):
    worker = Worker(notes.report, notes.failures.append)
    worker.submit("one", lambda _job: None)
    worker.wait(10)
    thread = worker.thread
    worker.close()
    assert thread is None or not thread.is_alive()
    assert worker.submit("two", lambda _job: None) is None


def test_finished_jobs_hold_nothing(worker):
    class Thing:
        pass

    thing = Thing()
    alive = weakref.ref(thing)

    def use(_job, thing=thing):
        yield

    worker.submit("use", use)
    assert worker.wait(10)
    del thing, use
    worker.submit("other", lambda _job: None)
    assert worker.wait(10)
    gc.collect()
    assert alive() is None


def test_many_threads_may_submit_and_cancel_at_once(worker, notes):
    done = []

    def hammer(number):
        for turn in range(50):
            worker.submit(f"kind {number % 3}", lambda job, turn=turn: (job.check(), done.append(turn)))
            if turn % 7 == 0:
                worker.cancel(f"kind {(number + 1) % 3}")

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert worker.wait(10)
    assert notes.failures == []
