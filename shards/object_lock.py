"""The lock of a folder in an object store: an object that one run creates, and writes again while it lives.

It is created only where there is none, and written again every `BEAT_S` seconds on condition that nobody else
has written it meanwhile; one that was not written for `STALE_S` belongs to a dead run, and may be taken over.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from ..errors import OutputError, RetryableError
from .object_store import ObjectStore
from .store import LOCK, Store

BEAT_S = 20.0
STALE_S = 180.0


def _said(text: bytes) -> dict[str, Any]:
    try:
        said = json.loads(text)
    except ValueError:
        return {}
    return said if isinstance(said, dict) and said.keys() >= {"run", "host", "pid"} else {}


def _holder(text: bytes) -> str:
    said = _said(text)
    if not said:
        return "a run that does not say its name"
    return f"run {said['run']} on {said['host']}, process {said['pid']}"


def _is_dead(text: bytes) -> bool:
    """Whether the lock is of a process of this machine that is gone."""
    said = _said(text)
    if said.get("host") != socket.gethostname() or said.get("pid") == os.getpid():
        return False
    try:
        os.kill(int(said["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, OverflowError):
        pass
    return False


def free(store: Store) -> str:
    """Remove the lock of a folder, whoever holds it. Returns who did; empty where nobody did."""
    try:
        text = store.read(LOCK)
    except FileNotFoundError:
        return ""
    store.remove([LOCK])
    return _holder(text)


class Lock:
    """An object that says who holds the folder; a thread writes it again while the run lives."""

    def __init__(self, store: ObjectStore, run: str) -> None:
        self._store, self._run = store, run
        self._lost = ""
        self._stop = threading.Event()
        self._tag = self._take()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()

    def _text(self) -> bytes:
        said = {"run": self._run, "host": socket.gethostname(), "pid": os.getpid(), "at": time.time()}
        return json.dumps(said).encode()

    def _take(self) -> str:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        store = self._store
        try:
            return self._put("create")
        except FileExistsError:
            pass
        try:
            held = store.ask(LOCK, lambda: obstore.head(store.client, LOCK))
            age_s = (datetime.now(UTC) - held["last_modified"]).total_seconds()
            text = store.read(LOCK)
            if age_s > STALE_S or _is_dead(text):
                return self._put({"e_tag": held["e_tag"]})
            raise OutputError(self._held(text, age_s))
        except (FileNotFoundError, FileExistsError, AlreadyExistsError, PreconditionError) as error:
            raise OutputError(
                f"{store.url}: another pairmill run has just taken this folder, or left it: try again"
            ) from error

    def _held(self, text: bytes, age_s: float) -> str:
        url = self._store.url
        return (
            f"{url}: another pairmill run is working in this folder ({_holder(text)}, heard of"
            f" {age_s:.0f} s ago); wait for it. If it is dead, its lock is void in"
            f" {max(0, STALE_S - age_s):.0f} s, or at once by `pairmill unlock {url}`"
        )

    def _put(self, mode: Any) -> str:
        import obstore

        store = self._store
        body = self._text()
        answer = store.write(LOCK, lambda: obstore.put(store.client, LOCK, body, mode=mode))
        return str(answer["e_tag"])

    def _beat(self) -> None:
        heard = time.monotonic()
        while not self._stop.wait(BEAT_S):
            try:
                self._tag = self._put({"e_tag": self._tag})
                heard = time.monotonic()
            except FileExistsError:
                self._lost = "another run has taken the folder over"
                return
            except (OutputError, RetryableError) as error:
                if time.monotonic() - heard > STALE_S:
                    self._lost = f"the lock could not be renewed for {STALE_S:.0f} s: {error}"
                    return

    def check(self) -> None:
        if self._lost:
            raise OutputError(f"{self._store.url}: {self._lost}: this run stops; what is finished stays")

    def release(self) -> None:
        self._stop.set()
        self._thread.join(timeout=5)
        if not self._lost:
            with suppress(OutputError, RetryableError):
                self._store.remove([LOCK])
