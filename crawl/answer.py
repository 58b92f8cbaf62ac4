"""What becomes of a request: the words for it, and which of them are worth asking again for."""

from __future__ import annotations

from dataclasses import dataclass

# worth another try at once, with a pause between; a host that timed out is left to --retry-failed
RETRIED = frozenset({"connection", "dns_failed", "server_error", "too_many_requests"})
PASSING = RETRIED | {"timeout", "robots_unreachable"}  # what `plan_retry` asks for again

SILENCES = frozenset({"connection", "dns_failed", "timeout", "tls"})  # of a host that may be dead


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request."""

    outcome: str  # 'ok' with a body, or why not
    body: bytes = b""
    status: int | None = None  # of the last response
    final_url: str | None = None  # of the last response
    etag: str | None = None
    last_modified: str | None = None
    pause_s: float | None = None  # Retry-After
    detail: str = ""  # for the log only
    asked: bool = True  # False: the host had refused so long that it was left alone
    is_reached: bool = True  # False: no connection came about in time
    is_limited: bool = False  # refused for the rate of its host, not perhaps for itself


class Ended(Exception):
    """The request is over with this outcome."""

    def __init__(self, outcome: str, detail: str = "") -> None:
        super().__init__(outcome, detail)
        self.outcome, self.detail = outcome, detail
