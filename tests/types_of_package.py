"""Type-check the package under its own name: the checkout folder may be called anything."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {
    "pythonVersion": "3.11",
    "typeCheckingMode": "standard",
    "reportMissingTypeStubs": False,
    "reportMissingModuleSource": False,
    "reportAttributeAccessIssue": False,  # pyarrow.compute makes its functions when it is imported
}


def main() -> int:
    """Run basedpyright over a link named `pairmill`. Returns its exit code."""
    with tempfile.TemporaryDirectory() as top:
        link = Path(top) / "pairmill"
        link.symlink_to(ROOT, target_is_directory=True)
        names = ["*.py", "crawl", "demo", "filter", "pretrain", "shards", "stats", "tests", "benchmarks"]
        prefix = Path(sys.prefix)
        places = {
            "include": [f"pairmill/{name}" for name in names],
            "extraPaths": [top],
            "venvPath": str(prefix.parent),
            "venv": prefix.name,
        }
        (Path(top) / "pyrightconfig.json").write_text(json.dumps({**SETTINGS, **places}))
        command = [str(Path(sys.executable).with_name("basedpyright")), "-p", top]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
