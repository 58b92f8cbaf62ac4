"""An S3 server on loopback as a process of its own: `python tests/s3_server.py [--refused .05] [--cut .01]`.

Its first line says where it is; it ends when its input does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from s3 import CREDENTIALS, serve_s3  # pyright: ignore[reportImplicitRelativeImport]


@contextmanager
def s3_process(*arguments: str) -> Iterator[dict[str, str]]:
    """A server with the bucket `bucket`. Yields the environment that leads a client to it."""
    with subprocess.Popen(
        [sys.executable, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield {**CREDENTIALS, "AWS_ENDPOINT_URL": json.loads(process.stdout.readline())["url"]}
        finally:
            process.stdin.close()
            process.wait(timeout=30)


def main() -> None:
    """Serve until the input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--refused", type=float, default=0.0, help="share of requests that get a 503")
    parser.add_argument("--cut", type=float, default=0.0, help="share of answers cut in the body")
    asked = parser.parse_args()
    with serve_s3() as s3:
        s3.refused, s3.cut = asked.refused, asked.cut
        sys.stdout.write(json.dumps({"url": s3.url}) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
