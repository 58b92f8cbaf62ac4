"""A command under a deadline, and a JSON file that says how it ended. Needs no package."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

TAIL = 2_000  # characters of a failed command's last words that are kept


def watched(command: list[str], environment: dict[str, str], seconds: float) -> tuple[str, str]:
    """Run a command, and end it with all its children at the deadline; how it ended, and its last words."""
    with tempfile.TemporaryFile("w+", errors="replace") as words:
        process = subprocess.Popen(
            command, env=environment, stdout=words, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = "done" if process.wait(seconds) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "late"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # whatever it left behind, too
            process.wait()
        words.seek(0)
        return status, "" if status == "done" else words.read()[-TAIL:]


def record(path: Path, status: str, said: str, **more: Any) -> str:
    """Add to a part's file how it ended; the file holds what the part had found by then."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found |= {"status": status, **more, **({"said": said} if said else {})}
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return status
