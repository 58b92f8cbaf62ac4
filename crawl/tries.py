"""How often one thing is asked for, and the pauses between."""

from __future__ import annotations

from ..recipe import Fetch
from .answer import RETRIED, Answer

REFUSALS = 8  # by the rate of its host, that cost a URL one of its retries


class Tries:
    """The tries of one URL, until one is the last."""

    def __init__(self, settings: Fetch) -> None:
        self._settings = settings
        self.asked = self._failures = self._refusals = 0

    def is_last(self, answer: Answer) -> bool:
        """Count what became of a try. Whether there is no further one; a redirect is none yet."""
        self._failures += answer.outcome in RETRIED and not answer.is_limited
        self._refusals += answer.is_limited
        if answer.outcome == "redirect":
            return False
        self.asked += answer.asked
        if answer.outcome not in RETRIED or not answer.asked:
            return True
        retries = self._settings.retries
        return self._refusals > REFUSALS * retries if answer.is_limited else self._failures > retries

    def pause_s(self, answer: Answer) -> float:
        """Before the next try. A refusal by the host's rate pauses the whole host instead: see `pace.py`."""
        if answer.is_limited:
            return 0.0
        if answer.pause_s is None:
            return self._settings.backoff_s * 2 ** (self._failures - 1)
        return min(answer.pause_s, self._settings.max_pause_s)
