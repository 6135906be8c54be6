"""
Packs the package's data for the wheel: SQL, templates and what a browser gets, as one file.

There are two hundred of them, small and alike. Packed one by one, as a wheel's files are, they were a third of the wheel;
here they are compressed as a whole, which takes half of that. `notifyworker/data.py` reads them.
Licences stay where they can be seen. An editable install has none: there the files are read where they are.
"""

import io
import lzma
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: Where data is, and where it goes; and which files are data.
FOLDERS = {"notifyworker/sql": "sql", "notifyworker/http/page": "http/page", "schema": "schema"}
KINDS = {".sql", ".html", ".css", ".js", ".svg"}


class DataHook(BuildHookInterface):
    """Called by hatchling for each wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the archive, of the same bytes each time."""
        if version == "editable":
            return
        self._folder = tempfile.TemporaryDirectory()
        made = Path(self._folder.name) / "data.zip.xz"
        made.write_bytes(packed(Path(self.root)))
        made.chmod(0o644)
        build_data["force_include"][str(made)] = "notifyworker/data.zip.xz"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002 - hatchling's
        """Remove it."""
        if version != "editable":
            self._folder.cleanup()


def packed(root: Path) -> bytes:
    """Return the archive."""
    files = {
        f"{target}/{file.relative_to(root / folder).as_posix()}": file
        for folder, target in FOLDERS.items()
        for file in (root / folder).rglob("*")
        if file.suffix in KINDS
    }
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name), files[name].read_bytes())
    return lzma.compress(made.getvalue(), preset=9)
