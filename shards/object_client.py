"""The client of an object store: how it is set up, and what its errors say in one line."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from typing import Any

from ..errors import ConfigError

PATIENCE_S = 120.0  # how long one request is asked again before the store is said to fail

# Error performing GET http://… in 1.5s, after 2 retries, max_retries: 2, retry_timeout: 8s - HTTP error: …
FAILED = re.compile(r"Error performing \w+ \S+ in \S+?(?:, after (\d+) retries)?(?:, \w+: \w+)* - (.*)")


def connect(url: str, patience_s: float = PATIENCE_S) -> Any:
    """A client for `scheme://bucket/prefix`. Raises ConfigError where it cannot be set up."""
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    scheme, _, rest = url.partition("://")
    if not rest.partition("/")[0]:
        raise ConfigError(f"{url}: no bucket is named: {scheme}://BUCKET/PREFIX")
    config: dict[str, Any] = {}
    options: dict[str, Any] = {"timeout": timedelta(seconds=60), "connect_timeout": timedelta(seconds=5)}
    if scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
        if endpoint:
            config["endpoint"] = endpoint
            options["allow_http"] = endpoint.startswith("http://")
        _check_s3_credentials(url)
    retry: Any = {"max_retries": max(1, int(patience_s / 4)), "retry_timeout": timedelta(seconds=patience_s)}
    make: Any = from_url  # its overloads know one cloud each
    try:
        return make(url, config=config, client_options=options, retry_config=retry)
    except (BaseError, ValueError) as error:
        raise ConfigError(f"{url}: this store cannot be opened: {brief(error)}") from error


S3_CREDENTIALS = (
    ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    ("AWS_WEB_IDENTITY_TOKEN_FILE",),
    ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",),
    ("AWS_CONTAINER_CREDENTIALS_FULL_URI",),
)


def _check_s3_credentials(url: str) -> None:
    """Raises ConfigError where there are none, and none to be had from the machine's own service."""
    if any(all(os.environ.get(name) for name in names) for names in S3_CREDENTIALS):
        return
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        raise ConfigError(
            f"{url}: no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            " (the machine's own are switched off by AWS_EC2_METADATA_DISABLED)"
        )


def no_bucket(error: object, url: str) -> str:
    if "NoSuchBucket" in str(error) or "container" in str(error).lower():
        bucket = url.partition("://")[2].partition("/")[0]
        return f"there is no bucket {bucket!r}: make it first, or name another"
    return brief(error)


def brief(error: object) -> str:
    """The first sentence of a client's error, without its debug output."""
    text = " ".join(str(error).split())
    if code := re.search(r"<Code>(\w+)</Code>(?:<Message>([^<]*))?", text):
        return f"{code[1]}: {code[2] or ''}".rstrip(": ")
    text = re.sub(r"(, )?(Debug source|request::RetryContext|Some\().*", "", text)
    if failed := FAILED.search(text):
        text = f"{failed[2].strip()} (asked {int(failed[1] or 0) + 1} times)"
    return text.strip()[:300]
