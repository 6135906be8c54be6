"""Where the files are that are no code: SQL, migrations, and what the page is made of. Imports nothing of ours."""

import io
import lzma
import zipfile
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path


def folder(path: str) -> Traversable:
    """
    Return a folder by its path: `sql`, `schema`, `http/page/templates`.

    In a wheel all of it is one file, which makes the wheel smaller by a seventh (hatch_build.py); in a checkout, and in an
    editable install, the files are where they are edited.
    """
    if (archive := _archive()) is not None:
        return zipfile.Path(archive, f"{path}/")
    here = Path(__file__).parent
    return here.parent / path if path == "schema" else here / path


@cache
def _archive() -> zipfile.ZipFile | None:
    """From memory, once: a file that is open could not be shared with processes that are forked."""
    packed = resources.files("notifyworker") / "data.zip.xz"
    return zipfile.ZipFile(io.BytesIO(lzma.decompress(packed.read_bytes()))) if packed.is_file() else None
