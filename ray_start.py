"""Start a Ray on this machine, or join a cluster; one that is not there is found out in seconds.

Ray itself waits minutes for a cluster that is gone, and for one that was never there.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from typing import Any

from .errors import ConfigError

KNOCK_S = 10.0
# gRPC is HTTP/2: each side begins with a frame of settings, the client after these words
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
SETTINGS_FRAME = 4


def start_ray(address: str | None, cpus: int | None) -> Any:
    """The module `ray`, started or joined. Raises ConfigError where no cluster answers."""
    os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    import ray._private.worker
    import ray.util.scheduling_strategies

    if address is not None:
        address = knock(address)
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            ray.init(
                address="local",  # None would join whatever RAY_ADDRESS names
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=128 * 2**20,
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        raise ConfigError(f"no Ray cluster at {address or 'this machine'}: {error}") from error
    # what Ray tells of dead processes goes to stdout, which is the summary's; the reports tell it too
    ray._private.worker._worker_logs_enabled = False
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_term)  # Ray's answer would be its stack and an abort
    return ray


def knock(address: str, *, timeout_s: float = KNOCK_S) -> str:
    """The address of the cluster, with `auto` looked up. Raises ConfigError where none answers there."""
    where = f"no Ray cluster at {address}"
    if address == "auto":
        address = _look_up()
        where = f"run.address is auto, and no Ray cluster at {address} (the last one that was started here)"
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        raise ConfigError(f"{where}: expected auto, host:port or ray://host:port")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s) as connection:
            if os.environ.get("RAY_USE_TLS", "0") in ("", "0") and not _speaks_grpc(connection):
                raise ConfigError(f"{where}: something else answers there")
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"{where}: {error}: start one with `ray start --head`, or leave run.address out"
        ) from error
    return address


def _speaks_grpc(connection: socket.socket) -> bool:
    connection.sendall(HELLO)
    answer = b""
    while len(answer) < 4:
        got = connection.recv(64)
        if not got:
            return False
        answer += got
    return answer[3] == SETTINGS_FRAME


def _look_up() -> str:
    """What `auto` stands for: RAY_ADDRESS, else the cluster that was started last on this machine."""
    from ray._private import services

    if named := os.environ.get("RAY_ADDRESS"):
        return named
    try:
        return services.canonicalize_bootstrap_address_or_die("auto")
    except ConnectionError as error:
        raise ConfigError(
            "run.address is auto, and no Ray was started on this machine: start one with `ray start --head`,"
            " or leave run.address out"
        ) from error
