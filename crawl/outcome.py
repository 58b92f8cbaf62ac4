"""The words for what a status says and what the network did."""

from __future__ import annotations

import socket
import ssl

import aiohttp

from .address import NotPublicError, UnknownHostError


def refusal(status: int) -> str | None:
    """The outcome of a status that brings no picture, or None."""
    if 200 <= status < 300:
        return "empty" if status in (204, 205) else None
    if 500 <= status < 600:  # above, LinkedIn's 999 for one, is a refusal
        return "server_error"
    named = {404: "not_found", 410: "not_found", 408: "timeout", 429: "too_many_requests"}
    return named.get(status, "client_error" if status >= 400 else "bad_response")


def outcome_of(error: Exception) -> str:
    """The word for what the network did. A specific class stands before those that it is one of."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    for kind, outcome in (
        (NotPublicError, "not_public"),
        (UnknownHostError, "dns_unknown"),
    ):
        if isinstance(cause, kind):
            return outcome
    for kind, outcome in (
        (aiohttp.ClientConnectorDNSError, "dns_failed"),
        (socket.gaierror, "dns_failed"),
        (ssl.SSLError, "tls"),
        (ssl.CertificateError, "tls"),
        (aiohttp.ClientSSLError, "tls"),
        (TimeoutError, "timeout"),
        (aiohttp.InvalidURL, "bad_url"),
        (aiohttp.ClientResponseError, "bad_response"),
        (aiohttp.ClientPayloadError, "connection"),
        (aiohttp.ClientConnectionError, "connection"),
        (OSError, "connection"),
    ):
        if isinstance(error, kind):
            return outcome
    return "bad_response"
