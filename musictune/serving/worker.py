"""The one thread that plays: jobs join its running batch and leave it, a step at a time."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from musictune import console
from musictune.errors import InputError
from musictune.generation.engine import Engine
from musictune.generation.request import Request
from musictune.serving.jobs import Job, LineFullError, State, StoppedError
from musictune.serving.limits import Limits

_LOOK = 0.1  # seconds of music between two looks at the codes of a job that is heard
_PATIENCE = 600  # seconds; nobody is asked to come back later than that
_STOPPED = "the server stops"


class Worker:
    """Plays jobs until it is stopped. Its methods may be called from any thread.

    A job that fails takes no other with it, and the next one finds a fresh session where the old
    one may be in pieces.

    Args:
        engine: what plays; nobody else may use it meanwhile.
        limits: how much at once.

    Raises:
        InputError: the engine cannot hold that much.
    """

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self.engine, self.limits = engine, limits
        self._changed = threading.Condition()
        self._jobs: dict[str, Job] = {}  # the oldest first
        self._line: deque[Job] = deque()
        self._playing: dict[int, Job] = {}  # by the session's tickets
        self._stopping = False
        self._pace = 0.0  # seconds of a step, lately
        model = engine.model
        self._more_steps = model.codebooks // model.channels - 1
        self._look = max(1, round(_LOOK * model.frame_rate))
        self._session = engine.session(limits.batch, limits.seconds)
        self._thread = threading.Thread(target=self._run, name="musictune-worker", daemon=True)

    def start(self) -> None:
        """Begin to play."""
        self._thread.start()

    def stop(self) -> None:
        """Cancel everything and end the thread after the step that it is in. May be repeated."""
        with self._changed:
            self._stopping = True
            for job in [*self._line, *self._playing.values()]:
                if not job.state.over:
                    job.end(State.cancelled, _STOPPED)
            self._line.clear()
            self._changed.notify_all()

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether it plays what comes."""
        return self._thread.is_alive() and not self._stopping

    @property
    def counts(self) -> tuple[int, int]:
        """How many jobs play and how many wait."""
        with self._changed:
            return len(self._playing), len(self._line)

    def submit(self, request: Request) -> Job:
        """Put a clip in line.

        Raises:
            InputError: this engine cannot play it.
            LineFullError: too many wait already.
            StoppedError: the worker has stopped.
        """
        self.engine.check(request)
        if request.seconds > self.limits.seconds:
            raise InputError(
                f"{request.seconds:g} seconds is too long; this server makes up to "
                f"{self.limits.seconds:g}"
            )
        job = Job(request, self.engine.model.frames(request.seconds) + self._more_steps)
        with self._changed:
            if self._stopping:
                raise StoppedError(_STOPPED)
            free = self._session.batch - len(self._playing)  # taken at the next step
            if len(self._line) >= self.limits.waiting + free:
                raise LineFullError(self._retry())
            self._prune()
            self._jobs[job.id] = job
            self._line.append(job)
            self._changed.notify_all()
        return job

    def find(self, job_id: str) -> Job | None:
        """The job of that name, unless it was forgotten."""
        with self._changed:
            self._prune()
            return self._jobs.get(job_id)

    def ahead(self, job: Job) -> int:
        """How many jobs wait before this one."""
        with self._changed:
            return self._line.index(job) if job in self._line else 0

    def cancel(self, job: Job, reason: str, forget: bool = False) -> None:
        """Stop a job, wherever it is; its place is free before the next step.

        Args:
            job: which; one that is over stays as it is.
            reason: one line.
            forget: its name is unknown afterwards.
        """
        with self._changed:
            if forget:
                self._jobs.pop(job.id, None)
            if job.state.over:
                return
            if job in self._line:
                self._line.remove(job)
            job.end(State.cancelled, reason)
            self._changed.notify_all()

    @contextlib.contextmanager
    def listening(self, job: Job, watcher: Callable[[], None]) -> Iterator[None]:
        """Inside, ``watcher`` is called for each change, and codes come while the job plays.

        When the last listener goes before the end, the job is cancelled.
        """
        with self._changed:
            job.listeners += 1
            job.watchers.add(watcher)
        try:
            yield
        finally:
            with self._changed:
                job.listeners -= 1
                job.watchers.discard(watcher)
                last = job.listeners == 0
            if last:
                self.cancel(job, "nobody listens any more")

    # --- the thread ---

    def _run(self) -> None:
        try:
            self._play()
        finally:  # a session that cannot be opened again ends the thread: say so to all
            self.stop()

    def _play(self) -> None:
        while True:
            with self._changed:
                while not (self._stopping or self._line or self._playing):
                    self._changed.wait()
                if self._stopping:
                    self._playing.clear()
                    return
                free = self._session.batch - len(self._playing)  # memory may allow fewer
                leaving = [t for t, job in self._playing.items() if job.state.over]
                joining = [
                    self._line.popleft() for _ in range(min(free + len(leaving), len(self._line)))
                ]
            try:
                for ticket in leaving:
                    self._session.cancel(ticket)
                    self._remove(ticket)
                for job in joining:
                    self._join(job)
                self._step()
            except Exception as error:
                # One clip must not end the server: whatever it was, those that play are lost.
                message = str(error) if isinstance(error, InputError) else _unforeseen(error)
                for ticket in list(self._playing):
                    self._fail(ticket, message)
                self._session = self.engine.session(self.limits.batch, self.limits.seconds)

    def _join(self, job: Job) -> None:
        if job.state.over:
            return
        try:
            ticket = self._session.add(job.request)
        except InputError as error:
            with self._changed:
                job.end(State.failed, str(error))
            return
        with self._changed:
            self._playing[ticket] = job
            if not job.state.over:  # cancelled while it moved: it leaves in the next round
                job.started, job.state = time.monotonic(), State.playing
                job.notify()

    def _step(self) -> None:
        if not self._playing:
            return
        session = self._session
        begun = time.monotonic()
        try:
            finished = session.step()
        except InputError as error:
            if not self._fail_lost(str(error)):
                raise
            return
        spent = time.monotonic() - begun
        self._pace = spent if not self._pace else 0.9 * self._pace + 0.1 * spent
        for ticket in finished:
            codes = session.take(ticket).cpu()
            job = self._remove(ticket)
            with self._changed:
                if not job.state.over:
                    job.codes, job.step = codes, job.steps
                    job.end(State.done)
        for ticket, job in list(self._playing.items()):
            job.step += 1
            if job.listeners and job.step % self._look == 0:
                job.codes = session.codes(ticket).cpu()
                job.notify()

    def _remove(self, ticket: int) -> Job:
        with self._changed:
            return self._playing.pop(ticket)

    def _fail_lost(self, message: str) -> bool:
        """Jobs that the session has forgotten have failed, the others play on; if there are any."""
        before = len(self._playing)
        for ticket in list(self._playing):
            try:
                self._session.codes(ticket)
            except InputError:
                self._fail(ticket, message)
        return len(self._playing) < before

    def _fail(self, ticket: int, message: str) -> None:
        job = self._remove(ticket)
        with self._changed:
            if not job.state.over:
                job.end(State.failed, message)

    # --- the books; all under the lock ---

    def _prune(self) -> None:
        """Forget jobs that have been over for long, and the oldest where they are too many."""
        over = [job for job in self._jobs.values() if job.state.over]
        over.sort(key=lambda job: job.ended)
        oldest = time.monotonic() - 60 * self.limits.minutes
        excess = len(over) - self.limits.kept
        for place, job in enumerate(over):
            if place < excess or job.ended < oldest:
                del self._jobs[job.id]

    def _retry(self) -> int:
        """Seconds until a place should be free."""
        left = [job.steps - job.step for job in self._playing.values()]
        return max(1, min(_PATIENCE, math.ceil(self._pace * min(left, default=0))))


def _unforeseen(error: Exception) -> str:
    message = " ".join(f"unforeseen {type(error).__name__}: {error}".split())[:300]
    console.note(message)
    return message
