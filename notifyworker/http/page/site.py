"""Templates and the head of every page: what is escaped, where links lead, and what a browser may load."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from jinja2 import DictLoader, Environment, StrictUndefined

from notifyworker.data import folder
from notifyworker.http.auth import ACTOR, LOCAL, Actor
from notifyworker.http.page import charts, shown
from notifyworker.http.page.assets import Assets
from notifyworker.settings import PREFIX

#: Nothing from elsewhere, no inline script, no style attribute.
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)


class Site:
    """Renders templates for one sidecar."""

    def __init__(self, prefix: str, where: str) -> None:
        """`prefix` is the path below which a proxy shows the page; `where` names the installation for people."""
        self._prefix = prefix
        self._where = where
        self.assets = Assets()
        files = folder("http/page/templates").iterdir()
        texts = {file.name: file.read_text(encoding="utf-8") for file in files if file.name.endswith(".html")}
        self._environment = Environment(
            loader=DictLoader(texts), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        self._environment.filters |= shown.FILTERS
        self._environment.globals |= {
            "ago": shown.ago, "clock": shown.clock, "plural": shown.plural, "percent": shown.percent, "query": shown.query_of,
            "spark": charts.spark, "bars": charts.bars, "lines": charts.lines, "slots_svg": charts.slots, "ticks": charts.ticks,
            "rated": shown.rated, "interval": charts.interval, "scale": charts.scale,
        }  # fmt: skip
        for name in texts:  # a template that can't be read is found at start and not at 3 a.m.
            self._environment.get_template(name)

    def base(self, request: web.Request) -> str:
        """The path below which this request's browser sees the page."""
        told = request.headers.get("X-Forwarded-Prefix", "").rstrip("/")
        return told if told and re.fullmatch(PREFIX, told) else self._prefix

    def next_of(self, path: str) -> str:
        """How the way in is told where to go on to."""
        return shown.query_of({"next": path}) if path else ""

    def render(self, request: web.Request, template: str, data: Mapping[str, Any], *, status: int = 200) -> web.Response:
        """Draw a page."""
        actor: Actor = request.get(ACTOR, LOCAL)
        context = {
            "base": self.base(request),
            "here": request.path,
            "here_full": request.path_qs,
            "where": self._where,
            "actor": actor,
            "asset": lambda name: self.assets.url(self.base(request), name),
            "frame": None,
            "now": datetime.now(UTC),
            **data,
        }
        text = self._environment.get_template(template).render(context)
        response = web.Response(text=text, status=status, content_type="text/html", headers={"Content-Security-Policy": POLICY})
        response.enable_compression()
        response.headers["Vary"] = "Accept, Accept-Encoding"
        return response


def wants_page(request: web.Request) -> bool:
    """Whether a browser asks: it names HTML, and rather than JSON."""
    accepted = request.headers.get("Accept", "")
    html, data = accepted.find("text/html"), accepted.find("application/json")
    return html >= 0 and (data < 0 or html < data)
