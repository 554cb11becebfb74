"""A connection from every process to process 0. Processes agree over it, and notice when one dies.

JAX's own heartbeats end a process inside C++ with a stack trace that names no process, or leave it waiting in a collective
for ever. So each process keeps a TCP connection to process 0. The kernel closes it when a process dies, and heartbeats every
few seconds show that a machine has gone. Each message is one JSON object on a line.
"""

from __future__ import annotations

import os
import queue
import selectors
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unimodal.errors import UsageError
from unimodal.hosts.peer import EXIT_DIVERGED, EXIT_LOST, EXIT_USAGE, LostError, Peer, listed

BEAT_SECONDS = 3.0
SILENCE_SECONDS = 40.0  # of a process that is taken for dead then; a compilation never blocks a thread for so long

Facts = Mapping[str, Any]
Judge = Callable[[Sequence[Facts]], str | None]


class Lifeline:
    """The connections of this process, with the thread that listens on them.

    `lost(text, code)` is called, in that thread, when another process dies, falls silent or gives up.
    """

    def __init__(self, process: int, count: int, peers: Sequence[Peer], lost: Callable[[str, int], None]):
        self.process, self.count = process, count
        self._peers = {peer.process: peer for peer in peers}
        self._lost = lost
        self._leaving = False
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._gathered: dict[str, dict[int, Facts]] = {}
        self._news = threading.Condition()
        self._step, self._stop_at = -1, None  # under _agreeing, which is held while the others are asked
        self._agreeing = threading.Lock()
        self._asking = False
        self._steps: dict[int, int] = {}
        self._thread = threading.Thread(target=self._listen, name="lifeline", daemon=True)
        self._thread.start()

    # --- what the main thread calls ---------------------------------------------------------------------------------
    def agree(self, stage: str, facts: Facts, judge: Judge, seconds: float) -> None:
        """Send the `facts` of all processes to process 0, whose `judge` returns None or what is wrong.

        Raises, in every process, UsageError with what is wrong, or LostError with who has not answered in `seconds`.
        """
        error: type[Exception] = UsageError
        if self.process:
            self._peers[0].send(kind="facts", stage=stage, facts=facts)
            try:  # process 0 waits as long itself: let it be the one to speak
                answer = self._answers.get(timeout=seconds + 10)
                text, error = answer["text"], LostError if answer["lost"] else UsageError
            except queue.Empty:
                error, text = LostError, f"{self.name(0)} has not answered for {seconds + 10:.0f} s ({stage})"
        else:
            everyone, text = self._hear(stage, facts, seconds)
            error, text = (UsageError, judge(everyone)) if text is None else (LostError, text)
            for peer in self._peers.values():
                peer.send(kind="verdict", text=text, lost=error is LostError)
        if text is not None:
            self._leaving = True  # everybody knows, and leaves for the same reason
            raise error(text)

    def name(self, process: int) -> str:
        peer = self._peers.get(process)
        return f"process {process} ({peer.host})" if peer else f"process {process}"

    def ask_to_stop(self) -> None:
        """Ask all processes to stop after the same step. A signal handler may call it."""
        threading.Thread(target=self._ask_to_stop, daemon=True).start()  # a handler must not wait for a lock

    def should_stop(self, step: int) -> bool:
        """True if all processes stop before `step`. Every process must ask before every step."""
        with self._agreeing:
            self._step = step
            return self._stop_at is not None and step >= self._stop_at

    def give_up(self, reason: str, code: int) -> None:
        """Tell the others that this process ends for a reason of its own, so that they do not wait for it."""
        if not self._leaving:
            self._leaving = True
            for peer in self._peers.values():
                peer.send(kind="failed", reason=reason, code=code)
            time.sleep(0.5)  # they shall hear it before they see the connection close

    def leave(self) -> None:
        """Tell the others that this process is done."""
        self._leaving = True
        for peer in self._peers.values():
            peer.send(kind="bye")

    # --- what the listening thread does -----------------------------------------------------------------------------
    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            self._listen_with(selector)

    def _listen_with(self, selector: selectors.BaseSelector) -> None:
        beat = 0.0
        for peer in self._peers.values():
            selector.register(peer.connection, selectors.EVENT_READ, peer)
        while selector.get_map():
            for key, _ in selector.select(timeout=1.0):
                peer: Peer = key.data
                messages = peer.lines()
                for message in messages or ():
                    self._take(peer, message)
                if messages is None:
                    selector.unregister(peer.connection)
                    if not peer.left:
                        self._report(peer.process, "has died: its connection closed without a word", EXIT_LOST)
            now = time.monotonic()
            if now - beat > BEAT_SECONDS:
                beat = now
                for peer in self._peers.values():
                    peer.send(kind="beat")
            for peer in self._peers.values():
                if not peer.left and now - peer.heard > SILENCE_SECONDS:
                    self._report(peer.process, f"has not been heard of for {SILENCE_SECONDS:.0f} s", EXIT_LOST)

    def _take(self, peer: Peer, message: dict[str, Any]) -> None:
        kind = message["kind"]
        if kind == "facts":
            with self._news:
                self._gathered.setdefault(message["stage"], {})[peer.process] = message["facts"]
                self._news.notify_all()
        elif kind == "verdict":
            self._answers.put(message)
        elif kind == "bye":
            peer.left = True
        elif kind == "failed":
            peer.left = True
            self._report(peer.process, f"gave up: {message['reason']}", message["code"])
        elif kind == "lost":
            self._end(message["text"], message["code"])
        elif kind == "stop":
            self._collect_steps()
        elif kind == "at?":
            self._agreeing.acquire()  # until the answer comes: a step that begins meanwhile waits for it
            peer.send(kind="at", step=self._step)
        elif kind == "at":
            self._steps[peer.process] = message["step"]
            self._decide()
        elif kind == "stop_at":
            self._stop_at = message["step"]
            self._agreeing.release()

    def _report(self, process: int, what: str, code: int) -> None:
        text = f"{self.name(process)} of {self.count} {what}"
        if self.process == 0 and not self._leaving:
            for peer in self._peers.values():
                peer.send(kind="lost", text=text, code=code)
        self._end(text, code)

    def _end(self, text: str, code: int) -> None:
        if not self._leaving:
            self._leaving = True
            self._lost(text, code)

    def _hear(self, stage: str, facts: Facts, seconds: float) -> tuple[list[Facts], str | None]:
        with self._news:
            gathered = self._gathered.setdefault(stage, {})
            gathered[0] = facts
            if not self._news.wait_for(lambda: len(gathered) == self.count, timeout=seconds):
                missing = [self.name(p) for p in range(self.count) if p not in gathered]
                return [], f"{listed(missing)} of {self.count} did not answer within {seconds:.0f} s ({stage})"
            del self._gathered[stage]  # the same may be asked again
        return [gathered[process] for process in range(self.count)], None

    def _ask_to_stop(self) -> None:
        if self.process:
            self._peers[0].send(kind="stop")
        else:
            self._collect_steps()

    def _collect_steps(self) -> None:
        """Collect, in process 0, the step of every process. No process may begin a step until process 0 has decided."""
        with self._news:
            if self._asking:
                return
            self._asking = True
        self._agreeing.acquire()
        self._steps[0] = self._step
        for peer in self._peers.values():
            peer.send(kind="at?")
        self._decide()

    def _decide(self) -> None:
        with self._news:
            if len(self._steps) < self.count or self._stop_at is not None:
                return
            # The furthest process has begun its step, whose collectives wait for the others. So all must run that step.
            self._stop_at = max(self._steps.values()) + 1
        for peer in self._peers.values():
            peer.send(kind="stop_at", step=self._stop_at)
        self._agreeing.release()


def end_now(text: str, code: int) -> None:
    """Say why, and end this process at once: its main thread may wait in a collective for a process that is dead."""
    sys.stdout.flush()
    advice = (
        "; run the same command again to resume from the last checkpoint"
        if code not in (EXIT_USAGE, EXIT_DIVERGED)
        else ""
    )
    print(f"error: {text}{advice}", file=sys.stderr, flush=True)
    os._exit(code)
