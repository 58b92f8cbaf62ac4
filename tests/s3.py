"""An S3 server on loopback, in this process, with faults when asked for."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

BUCKET = "bucket"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


class S3:
    """A running server. `refused` and `cut` are the shares of requests that get a 503, or half a body.

    read_only: whatever would change something is denied.
    """

    def __init__(self, app: Callable[..., Iterable[bytes]], seed: int = 0) -> None:
        self._app, self._dice, self._mutex = app, random.Random(seed), threading.Lock()
        self.refused = self.cut = 0.0
        self.read_only = False
        self.requests: list[tuple[str, str]] = []  # (method, path)
        self.faults = 0
        self.url = ""

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        with self._mutex:
            self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
            refused, cut = self._dice.random() < self.refused, self._dice.random() < self.cut
            self.faults += refused or cut
        if refused and "moto-api" not in environ["PATH_INFO"]:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        if self.read_only and environ["REQUEST_METHOD"] in ("PUT", "POST", "DELETE"):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("403 Forbidden", [("Content-Length", str(len(DENIED)))])
            return [DENIED]
        body = b"".join(self._app(environ, start))
        return [body[: len(body) // 2] if cut else body]


@contextmanager
def serve_s3(seed: int = 0) -> Iterator[S3]:
    """A server with one empty bucket, and the environment that leads a client to it."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    s3 = S3(DomainDispatcherApplication(create_backend_app), seed)
    server = make_server("127.0.0.1", 0, s3, threaded=True)
    server.RequestHandlerClass.log_request = lambda *_, **__: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    s3.url = f"http://127.0.0.1:{server.server_port}"
    try:
        with mock.patch.dict(os.environ, {**CREDENTIALS, "AWS_ENDPOINT_URL": s3.url}):
            make_bucket(s3.url, BUCKET)
            yield s3
    finally:
        forget_all(s3.url)
        server.shutdown()
        thread.join(timeout=10)
        server.server_close()


def make_bucket(url: str, bucket: str) -> None:
    import urllib.request

    urllib.request.urlopen(urllib.request.Request(f"{url}/{bucket}", method="PUT"), timeout=10).close()


def forget_all(url: str) -> None:
    """What moto holds is of the process, not of the server: the next one would find this one's bucket."""
    import urllib.request

    urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/reset", method="POST"), timeout=10).close()
