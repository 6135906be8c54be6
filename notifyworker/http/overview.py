"""A plain page that says how this worker is and where the rest stands; no script, nothing from elsewhere."""

from html import escape

from aiohttp import web

from notifyworker.database import DatabaseError, brief
from notifyworker.http.answer import json_answer
from notifyworker.http.observed import Observed
from notifyworker.http.pool import Pool
from notifyworker.observe import log

_LINKS = {
    "/runs": "runs, newest first",
    "/leases": "who holds what, until when",
    "/workers": "the fleet",
    "/reaper": "the leader, and what it took from whom",
    "/healthz": "health of this worker",
    "/readyz": "whether it claims",
    "/metrics": "metrics",
    "/events": "state changes as they happen",
    "/openapi.json": "all of it, for programs",
}
_POLICY = "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"


async def overview(request: web.Request, worker: Observed, pool: Pool) -> web.Response:
    """Answer `GET /`, also without a database: then the leader is not known."""
    reasons = worker.health()
    try:
        leader = (await worker.store.reaper_state(pool))["leader"]
    except DatabaseError as error:
        log.warning("sidecar_database_error", method=request.method, route="/", error=brief(error))
        leader = None
        reasons = [*reasons, "the sidecar can't use the database"]
    accepted = request.headers.get("Accept", "")
    if "application/json" in accepted and "text/html" not in accepted:
        return json_answer(
            {
                "status": "failing" if reasons else "ok",
                "reasons": reasons,
                "ready": worker.is_ready(),
                "lease_owner": worker.lease_owner,
                "leader": leader,
                "links": list(_LINKS),
            }
        )
    page = _page(worker.lease_owner, reasons, leader, is_ready=worker.is_ready())
    return web.Response(text=page, content_type="text/html", headers={"Content-Security-Policy": _POLICY})


def _page(lease_owner: str, reasons: list[str], leader: str | None, *, is_ready: bool) -> str:
    health = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
    links = "".join(f'<li><a href="{path}">{path}</a> {told}</li>' for path, told in _LINKS.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>notifyworker</title></head><body>'
        f"<h1>notifyworker</h1><p>{escape(lease_owner)}: {'failing' if reasons else 'ok'}, "
        f"{'claims runs' if is_ready else 'does not claim'}.</p>"
        + (f"<ul>{health}</ul>" if reasons else "")
        + f"<p>Leader: {escape(leader or 'not known')}</p><h2>As JSON</h2><ul>{links}</ul></body></html>\n"
    )
