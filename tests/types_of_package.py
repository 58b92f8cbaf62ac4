"""Type-check the package under its own name: the checkout folder may be called anything."""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = """{{"include": [{folders}], "extraPaths": ["{top}"], "pythonVersion": "3.11",
"typeCheckingMode": "standard", "reportMissingTypeStubs": false, "reportMissingModuleSource": false, "reportAttributeAccessIssue": false,
"venvPath": "{venv_parent}", "venv": "{venv}"}}"""


def main() -> int:
    """Run basedpyright over a link named `pairmill`. Returns its exit code."""
    with tempfile.TemporaryDirectory() as top:
        link = Path(top) / "pairmill"
        link.symlink_to(ROOT, target_is_directory=True)
        names = ["*.py", "crawl", "demo", "filter", "pretrain", "shards", "stats", "tests", "benchmarks"]
        folders = ", ".join(f'"pairmill/{name}"' for name in names)
        prefix = Path(sys.prefix)
        text = SETTINGS.format(folders=folders, top=top, venv_parent=prefix.parent, venv=prefix.name)
        (Path(top) / "pyrightconfig.json").write_text(text)
        command = [str(Path(sys.executable).with_name("basedpyright")), "-p", top]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
