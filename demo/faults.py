"""What goes wrong on the web, one kind after another: the answer that a server gives, and its right reason.

Some kinds look odd and are fine: their reason is None, and a crawler that drops them has lost a good pair.
"""

from __future__ import annotations

import gzip
import io
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from PIL import Image

HOST = "http://pictures.demo.test"
HTML = b"<!doctype html><html><head><title>Not here</title></head><body><h1>Sorry</h1></body></html>"
SVG = (
    b'<svg xmlns="http://www.w3.org/2000/svg" width="99" height="99"><script>alert(1)</script>'
    b'<image href="file:///etc/passwd"/></svg>'
)


@dataclass(frozen=True, slots=True)
class Page:
    """What the server answers at a URL."""

    url: str
    body: bytes = b""
    status: int = 200
    kind: str = "image/jpeg"  # Content-Type
    headers: dict[str, str] = field(default_factory=dict)
    act: str = "answer"  # or hang, endless, cut (half a body), flaky (503 the first time)


OPT_OUTS = (
    *("noai", "noimageai, noai", "noindex, noai", "pairmill: noai", "none, noml"),
    "unavailable_after: 25 Jun 2030 15:00:00 PST, noai",
)
Make = Callable[[str, bytes, random.Random], list[Page]]  # of (the row's URL, a JPEG, dice)


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of answer: how many rows of it go with 4,500 pictures, and the reason it must end under."""

    rows: int
    reason: str | None
    make: Make


def _with(**page: object) -> Make:
    """Pages that hold the picture itself, but for these fields."""
    return lambda url, jpeg, dice: [Page(url, **{"body": jpeg, **page})]  # type: ignore[arg-type]


def _one_of(*headers: str) -> Make:
    return lambda url, jpeg, dice: [Page(url, jpeg, headers={"X-Robots-Tag": dice.choice(headers)})]


def _redirect_ok(url: str, jpeg: bytes, dice: random.Random) -> list[Page]:
    path = f"/moved/{dice.getrandbits(40):010x}.jpg"
    host = url.split("/")[2]
    location = dice.choice((path, f"//{host}{path}", f"http://{host}{path}"))
    status = dice.choice((301, 302, 303, 307, 308))
    return [_to(url, location, status), Page(f"http://{host}{path}", jpeg)]


def _redirect_loop(url: str, jpeg: bytes, dice: random.Random) -> list[Page]:
    other = f"{HOST}/round/{dice.getrandbits(40):010x}"
    return [_to(url, other), _to(other, url)]


def _redirect_chain(url: str, jpeg: bytes, dice: random.Random) -> list[Page]:
    stops = [url, *(f"{HOST}/hop/{dice.getrandbits(40):010x}" for _ in range(9))]
    return [*(_to(here, there) for here, there in pairwise(stops)), Page(stops[-1], jpeg)]


def _redirect_inside(url: str, jpeg: bytes, dice: random.Random) -> list[Page]:
    inside = ("http://169.254.169.254/latest/meta-data/", "http://127.0.0.1/admin.jpg", "http://[::1]/a.jpg")
    return [_to(url, dice.choice((*inside, "http://10.0.0.8/a.jpg")))]


def _redirect_file(url: str, jpeg: bytes, dice: random.Random) -> list[Page]:
    return [_to(url, dice.choice(("file:///etc/passwd", "javascript:alert(1)")))]


def _to(url: str, location: str, status: int = 302) -> Page:
    return Page(url, b"", status, "text/html", {"Location": location})


def _truncated(url: str, jpeg: bytes, dice: random.Random) -> list[Page]:
    return [Page(url, jpeg[: int(len(jpeg) * dice.uniform(0.3, 0.8))])]


def _garbage(url: str, jpeg: bytes, dice: random.Random) -> list[Page]:
    """A PNG that starts well and goes on with noise."""
    return [Page(url, b"\x89PNG\r\n\x1a\n" + dice.randbytes(900), kind="image/png")]


def _saved(image: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def _pixel_bomb(url: str, jpeg: bytes, dice: random.Random) -> list[Page]:
    """144 million pixels in 18 kB."""
    return [Page(url, _saved(Image.new("1", (12_000, 12_000)), "PNG"), kind="image/png")]


def _gzip_bomb(url: str, jpeg: bytes, dice: random.Random) -> list[Page]:
    body = gzip.compress(bytes(20_000_000), 9, mtime=0)
    return [Page(url, body, headers={"Content-Encoding": "gzip"})]


def _gzipped(url: str, jpeg: bytes, dice: random.Random) -> list[Page]:
    return [Page(url, zlib.compress(jpeg), headers={"Content-Encoding": "deflate"})]


def _banner(url: str, jpeg: bytes, dice: random.Random) -> list[Page]:
    colour = tuple(dice.randrange(256) for _ in range(3))
    return [Page(url, _saved(Image.new("RGB", (660, 22), colour), "JPEG"))]


def _nothing(url: str, jpeg: bytes, dice: random.Random) -> list[Page]:
    return []


FAULTS: dict[str, Fault] = {
    "not found (404)": Fault(60, "not_found", _with(body=HTML, status=404, kind="text/html")),
    "gone (410)": Fault(20, "not_found", _with(body=HTML, status=410, kind="text/html")),
    "forbidden (403)": Fault(20, "client_error", _with(body=HTML, status=403, kind="text/html")),
    "server error (500)": Fault(12, "server_error", _with(body=b"", status=500)),
    "too many requests (429)": Fault(
        6, "too_many_requests", _with(body=b"", status=429, headers={"Retry-After": "0"})
    ),
    "timeout": Fault(5, "timeout", _with(act="hang")),
    "nobody listens": Fault(6, "connection", _nothing),
    "cut in the middle": Fault(6, "connection", _with(act="cut")),
    "redirect loop": Fault(10, "redirects", _redirect_loop),
    "nine redirects": Fault(6, "redirects", _redirect_chain),
    "redirect to the inside": Fault(10, "not_public", _redirect_inside),
    "redirect to a file": Fault(4, "bad_url", _redirect_file),
    "private address": Fault(10, "not_public", _nothing),
    "page instead of picture": Fault(50, "not_image", _with(body=HTML, kind="text/html")),
    "page that says it is JPEG": Fault(20, "not_image", _with(body=HTML)),
    "empty answer": Fault(8, "empty", _with(body=b"")),
    "truncated JPEG": Fault(25, "image_truncated", _truncated),
    "PNG of noise": Fault(8, "image_broken", _garbage),
    "SVG with a script": Fault(8, "format_unsupported", _with(body=SVG, kind="image/svg+xml")),
    "pixel bomb": Fault(4, "too_many_pixels", _pixel_bomb),
    "gzip bomb": Fault(3, "too_big", _gzip_bomb),
    "endless body": Fault(4, "too_big", _with(act="endless")),
    "banner 30:1": Fault(10, "aspect", _banner),
    "opted out": Fault(
        60,
        "noai",
        _one_of(*OPT_OUTS),
    ),
    "opted out for others": Fault(15, None, _one_of("otherbot: noai", "nofollow", "max-snippet: 9")),
    "moved": Fault(50, None, _redirect_ok),
    "503, then well": Fault(15, None, _with(act="flaky")),
    "JPEG called text": Fault(15, None, _with(kind="text/plain")),
    "compressed unasked": Fault(8, None, _gzipped),
}  # fmt: skip
PRIVATE = ("10.1.2.3", "127.0.0.1", "192.168.1.1", "169.254.169.254", "2130706433", "[::1]", "[fd00::7]")
