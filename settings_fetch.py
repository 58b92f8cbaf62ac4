"""The settings of fetching: what is asked of whom, under which name, and what is done with the answers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from .setting_types import Settings

Notice = Literal["robots", "header", "tdm", "ai_txt", "page"]
NAMELESS = "pairmill/0.1 (image-text dataset builder; operator not named)"


class HostBudget(Settings):
    """What one host bears, from all tasks together."""

    at_once: int | None = Field(default=None, gt=0, description="requests in flight; per_host when not given")
    per_second: float | None = Field(default=None, gt=0, description="per_host_rate when not given")


Hash = Literal["md5", "sha1", "sha256", "sha512", "pdq"]


class Expect(Settings):
    """Hashes that come with a list: is what comes the picture that the list was made of?"""

    hashes: dict[str, Hash] = Field(
        default={"md5": "md5", "sha1": "sha1", "sha256": "sha256", "sha512": "sha512", "pdq": "pdq"},
        description="the list's columns with a hash of each picture, in hexadecimal, and their kinds",
    )
    near_distance: int = Field(
        default=31, ge=0, le=255, description="PDQ bits that may differ in a picture that is near"
    )
    keep: Literal["match", "near", "all"] = Field(
        default="near", description="what stays: all keeps what has changed too, as a column says"
    )


class Fetch(Settings):
    """Pictures from the web into raw shards."""

    agent: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_-]+$",
        description="the crawler's own name, one word: robots.txt and headers address it by that",
    )
    contact: str | None = Field(
        default=None, description="URL or e-mail address of who runs the crawl, for those who are asked"
    )
    user_agent: str = Field(
        default=NAMELESS, description="sent with every request; made of agent and contact when not given"
    )
    consent: Literal["respect", "record"] = Field(
        default="respect", description="what sites say against use: it decides, or is a column and no more"
    )
    signals: tuple[Notice, ...] = Field(
        default=("robots", "header", "tdm", "ai_txt", "page"),
        description="what is read of it: robots.txt, X-Robots-Tag and Content-Usage, TDM reservations,"
        " ai.txt, the list's page_signals",
    )
    opt_outs: tuple[str, ...] = Field(
        default=("noai", "noimageai", "noindex", "noimageindex", "noml"),
        description="X-Robots-Tag directives that are obeyed",
    )
    robots_outage_days: float | None = Field(
        default=None,
        gt=0,
        description="robots.txt unreachable for so long counts as none; never when not given",
    )
    max_crawl_delay_s: float = Field(
        default=60.0, ge=0, description="a host with a longer Crawl-delay is not asked"
    )
    expect: Expect = Expect()
    urls_per_shard: int = Field(default=10_000, gt=0, description="distinct URLs asked for in one raw shard")
    concurrency: int = Field(default=128, gt=0, description="requests in flight in one task")
    per_host: int = Field(
        default=4, gt=0, description="requests in flight to one host, from all tasks together"
    )
    per_host_rate: float | None = Field(
        default=None,
        gt=0,
        description="requests a second to one host, from all tasks together; when not given 10, and no limit"
        " for hosts that the recipe itself names",
    )
    hosts: dict[str, HostBudget] = Field(
        default_factory=dict,
        description="budgets of hosts of their own, by name or as *.example.com, which is example.com too",
    )
    dead_after: int = Field(
        default=30, gt=0, description="failures in a row after which a host is asked for nothing further"
    )
    proxy: str | None = Field(
        default=None,
        pattern=r"^https?://[^/\s]+/?$",
        description="http://[user:password@]host:port that all requests go through; it resolves the names",
    )
    deadline_s: float = Field(default=20.0, gt=0, description="for one URL, its redirects and body, per try")
    max_bytes: int = Field(default=20_000_000, gt=0, description="longest body accepted")
    max_redirects: int = Field(default=5, ge=0)
    retries: int = Field(default=2, ge=0, description="further tries after a passing failure")
    backoff_s: float = Field(default=1.0, ge=0, description="pause before the first retry; doubled each time")
    max_pause_s: float = Field(default=60.0, ge=0, description="longest pause that a Retry-After gets")
    patience_s: float = Field(default=70.0, ge=0, description="then a host that only says 429 is left alone")
    allow_hosts: tuple[str, ...] = Field(
        default=(), description="host:port pairs that may be reached though their address is not public"
    )
    max_pixels: int = Field(default=64_000_000, gt=0, description="width x height, read from the header")
    max_decoded_mb: int = Field(default=640, gt=0, description="memory to decode a picture, by its format")
    max_aspect: float = Field(default=20.0, ge=1, description="longer over shorter side, before decoding")
    resize: Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"] = "keep_ratio"
    image_size: int = Field(default=256, gt=0, description="pixels: what `resize` brings a side to")
    only_if_bigger: bool = Field(default=True, description="never enlarge a picture")
    encode: Literal["jpg", "png", "webp"] = "jpg"
    quality: int = Field(default=90, ge=1, le=100, description="JPEG and WebP quality")
    cpus: float = Field(default=1.0, gt=0, description="cores that one task asks for")

    @field_validator("resize", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: object) -> object:
        return "no" if value is False else value  # YAML reads `resize: no` as false
