"""A loopback HTTP server for benchmarks: holds a folder's or tar's files in memory and serves /<name>.

Run it in a process of its own: `python loopback.py SOURCE` prints its port; it ends when its stdin does.
"""

from __future__ import annotations

import asyncio
import sys
import tarfile
from pathlib import Path


def read_files(source: Path) -> dict[str, bytes]:
    """Bytes of every regular file by base name."""
    if source.is_dir():
        return {path.name: path.read_bytes() for path in sorted(source.rglob("*")) if path.is_file()}
    with tarfile.open(source) as tar:
        found = {Path(member.name).name: tar.extractfile(member) for member in tar if member.isfile()}
        return {name: file.read() for name, file in found.items() if file is not None}


class Serve(asyncio.Protocol):
    """Answers GET /<name>?anything; keep-alive; nothing else of HTTP."""

    def __init__(self, answers: dict[bytes, bytes], missing: bytes) -> None:
        self.answers, self.missing, self.pending = answers, missing, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.pending += data
        while b"\r\n\r\n" in self.pending:
            request, _, self.pending = self.pending.partition(b"\r\n\r\n")
            name = request.split(b" ", 2)[1].partition(b"?")[0].removeprefix(b"/")
            self.transport.write(self.answers.get(name, self.missing))


def _answer(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def serve(source: Path) -> None:
    answers = {name.encode(): _answer("200 OK", data) for name, data in read_files(source).items()}
    missing = _answer("404 Not Found", b"")
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Serve(answers, missing), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
