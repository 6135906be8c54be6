"""What the page is drawn with: files of ours and of others, from memory, under names that change with their contents."""

import gzip
import hashlib
from dataclasses import dataclass

from aiohttp import web

from notifyworker.data import folder
from notifyworker.http.problem import Problem

_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
#: Each asset and the files that it is made of. htmx and its extension are one: between two scripts a browser may let htmx
#: begin, and an extension that comes later is never asked to open the stream.
_FILES = {
    "icon.svg": ["icon.svg"],
    "page.css": ["page.css"],
    "page.js": ["page.js"],
    "htmx.js": ["vendor/htmx.min.js", "vendor/hx-sse.min.js"],
    "uPlot.iife.min.js": ["vendor/uPlot.iife.min.js"],
}


@dataclass(frozen=True, slots=True)
class Asset:
    """One file: its bytes, plain and packed, and the hash that stands in its address."""

    name: str
    plain: bytes
    packed: bytes
    version: str


class Assets:
    """All of them. Anybody may have them: they are public, and the way in is drawn with them."""

    def __init__(self) -> None:
        files = folder("http/page/assets")
        self._by_name = {}
        for name, paths in _FILES.items():
            plain = b"\n".join(files.joinpath(*path.split("/")).read_bytes() for path in paths)
            self._by_name[name] = Asset(name, plain, gzip.compress(plain, 9, mtime=0), hashlib.sha256(plain).hexdigest()[:12])

    def url(self, base: str, name: str) -> str:
        """Where it is, below the page's base path."""
        return f"{base}/assets/{name}?v={self._by_name[name].version}"

    async def serve(self, request: web.Request) -> web.Response:
        """Answer with one; whoever asks by its version never needs to ask again."""
        asset = self._by_name.get(request.match_info["name"])
        if asset is None:
            raise Problem(404, "Not Found", "there is no such file")
        is_packed = "gzip" in request.headers.get("Accept-Encoding", "")
        headers = {
            "Content-Type": _TYPES[asset.name.rpartition(".")[2]] + "; charset=utf-8",
            "Cache-Control": "public, max-age=31536000, immutable" if request.query.get("v") == asset.version else "no-cache",
            "Vary": "Accept-Encoding",
        }
        if is_packed:
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=asset.packed if is_packed else asset.plain, headers=headers)
