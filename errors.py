"""The error tree. An error is named by what the caller does next: stop, try again, or count it and go on."""

from __future__ import annotations

import errno
from pathlib import Path

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # no task can go on after one of these
LASTING = {  # what these say of a path stays true, however often it is tried
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY,
    errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EBADF, errno.ESPIPE, errno.EFBIG, errno.EXDEV,
}  # fmt: skip


class PairmillError(Exception):
    """Anything that pairmill raises on purpose; its message says where, what, and what to do."""

    exit_code = 1


class ConfigError(PairmillError, ValueError):
    """A recipe, a flag or an input that cannot work: nothing was started."""

    exit_code = 2


class RetryableError(PairmillError):
    """The outside failed (a host, a disk for a moment): back off and try again."""


def may_pass(error: BaseException) -> bool:
    """Whether an error of the system may be gone at the next try: one of a network, or of a disk's moment.

    Libraries raise OSError without a number for broken files: those stay broken.
    """
    if not isinstance(error, OSError):
        return False
    if error.errno is None:
        return isinstance(error, TimeoutError | ConnectionError)
    return error.errno not in LASTING | DISK_ERRORS


class OutputError(PairmillError):
    """The output folder cannot be written (full, read-only, in use): stop; what is finished stays."""


class DataError(PairmillError):
    """Bad input: count it, record it, go on."""


class RowError(DataError):
    """One row that cannot be used; `reason` is the word that it is counted under."""

    def __init__(self, reason: str, key: str = "") -> None:
        super().__init__(f"{key}: {reason}" if key else reason)
        self.reason = reason
        self.key = key

    def __reduce__(self) -> tuple[type[RowError], tuple[str, str]]:
        return RowError, (self.reason, self.key)


class ShardError(DataError):
    """A file that is not what its tally says; names the place."""

    def __init__(self, path: Path | str, offset: int | None, problem: str) -> None:
        where = f"{path}" if offset is None else f"{path}, byte {offset}"
        super().__init__(f"{where}: {problem}")
        self.path = str(path)
        self.offset = offset
        self.problem = problem

    def __reduce__(self) -> tuple[type[ShardError], tuple[str, int | None, str]]:
        return ShardError, (self.path, self.offset, self.problem)
