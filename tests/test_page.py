"""The page without a browser: each of its pages, what it is drawn with, its actions, and that looking changes nothing."""

import asyncio
import gzip
import hashlib
import html
import json
import re
import tomllib
import uuid
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import asyncpg
import pytest
from servers import SURELY_S, Cluster, eventually
from test_http import Answer, Caller, ask, claim, serve  # noqa: F401 - a fixture

from notifyworker import Run
from notifyworker.data import folder
from notifyworker.errors import SettingsError
from notifyworker.http.page import charts, shown, views
from notifyworker.http.page.attention import Need, sentence, suspects
from notifyworker.http.page.queries import Queries
from notifyworker.http.page.runs import filter_of, find
from notifyworker.http.page.site import Site
from notifyworker.http.pool import Pool
from notifyworker.migrate import migrate, render
from notifyworker.settings import Settings
from notifyworker.tokens import named_tokens_of

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
FORM = {**HTML, "Content-Type": "application/x-www-form-urlencoded"}
PAGES = ("/", "/?range=24h", "/runs", "/workers", "/reaper", "/schedules", "/pauses", "/system", "/audit", "/shadow")
ASSETS = resources.files("notifyworker") / "http" / "page" / "assets"
NASTY = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}</pre></title>&lt;"


class Checked(HTMLParser):
    """What a page may not have: inline scripts, styles, handlers, elements that nobody closes, an id twice."""

    VOID = frozenset({"meta", "link", "input", "br", "img", "path", "rect", "circle", "line", "use", "ellipse", "option"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self._open: list[str] = []
        self._in_script = False
        self.feed(text)
        if self._open:
            self.faults.append(f"not closed: {self._open}")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.faults += [f"{name} of {tag}" for name in given if name == "style" or name.startswith(("on", "hx-on", "hx-vals"))]
        self.faults += [f"{tag} element" for _ in [0] if tag in {"style", "img", "iframe", "object", "base"}]
        if tag == "script" and not str(given.get("src") or "").startswith(("/assets/", "/queue/assets/")):
            self.faults.append("script without src, or from elsewhere")
        self.ids += [str(given["id"])] if "id" in given else []
        self.links += [str(given[name]) for name in ("href", "action", "src") if name in given]
        if tag == "time" and not {"datetime", "title"} <= given.keys():
            self.faults.append("time without its moment")
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        if not self._open or self._open.pop() != tag:
            self.faults.append(f"</{tag}> closes another")

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script" and data.strip():
            self.faults.append("inline script")


def checked(answer: Answer, status: int = 200) -> Checked:
    assert answer.status == status, answer.text[:2000]
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = answer.headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'; style-src 'self'; script-src 'self';")
    page = Checked(answer.text)
    assert page.faults == []
    assert len(page.ids) == len(set(page.ids)), [name for name in page.ids if page.ids.count(name) > 1]
    assert all(link.startswith(("/", "#")) for link in page.links), page.links
    return page


def words(answer: Answer) -> str:
    """What somebody reads."""
    main = answer.text[answer.text.index("<main") : answer.text.index("</main>")]
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", main)))


async def act(ask: Caller, name: str, /, *, sure: bool = True, headers: dict[str, str] = FORM, **fields: Any) -> Answer:  # noqa: F811
    given = {**fields, **({"sure": "1"} if sure else {})}
    return await ask.post(f"/actions/{name}", data=urlencode(given, doseq=True), headers=headers)


async def settle(connection: asyncpg.Connection, state: str = "failed", **columns: Any) -> uuid.UUID:
    """Move what is running to the history, as a worker does."""
    given = {"result": None, "effects": None, "errors": "[]", **columns}
    row = await connection.fetchrow("DELETE FROM notifyworker.runs WHERE state = 'running' RETURNING *")
    await connection.execute(
        """INSERT INTO notifyworker.run_history (run_id, run_at, created_at, started_at, lease_token, priority, max_attempts, attempt,
               is_shadow, state, kind, project_id, settled_by, error_code, payload, headers, errors, result, effects)
           VALUES ($1, $2, $3, $4, 1, 0, 3, 1, $5, $6, $7, $8, 'w:1:a', $9, $10, $14, $11, $12, $13)""",
        row["run_id"], row["run_at"], row["created_at"], row["started_at"], row["is_shadow"], state, row["kind"], row["project_id"],
        "E-RUN-001" if state == "failed" else None, row["payload"], given["errors"], given["result"], given["effects"], row["headers"],
    )  # fmt: skip
    return row["run_id"]


async def worker_row(connection: asyncpg.Connection, owner: str = "w:1:a", *, age_s: float = 0.0, kinds: Any = ("k",)) -> None:
    await connection.execute(
        """INSERT INTO notifyworker.workers (lease_owner, host, pid, version, kinds, concurrency, running, state, shadow, presence,
               presumed_dead_s, lease_s, heartbeat_interval_s, started_at, heartbeat_at)
           VALUES ($1, 'h', 1, '0.1.0', $2, 4, 1, 'running', 'honour', false, 10, 60, 15, now() - interval '1 h', now() - $3 * interval '1 s')""",
        owner, list(kinds), age_s,
    )  # fmt: skip


# What it is made of


def test_what_is_vendored_is_what_it_was() -> None:
    vendor = ASSETS / "vendor"
    listed = tomllib.loads((vendor / "VENDOR.toml").read_text())
    there = {file.name for file in vendor.iterdir()}

    assert there == {*listed, "VENDOR.toml", *(entry["license_file"] for entry in listed.values())}
    for name, entry in listed.items():
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == entry["sha256"], name
        assert (vendor / entry["license_file"]).read_text().strip()


async def test_it_is_small_and_offline(ask: Caller) -> None:  # noqa: F811
    page = await ask.get("/", headers=HTML)
    first = 0
    for link in {link for link in checked(page).links if "/assets/" in link}:
        asset = await ask.session.get(ask.sidecar.url + link)
        first += len(gzip.compress(await asset.read()))
        assert asset.headers["Cache-Control"].endswith("immutable"), link
    everything = sum(
        len(file.read_bytes()) for folder in (ASSETS, ASSETS / "vendor") for file in folder.iterdir() if file.is_file()
    )

    assert everything < 200_000
    assert len(gzip.compress(page.text.encode())) + first < 60_000
    assert "//" not in re.sub(r"https?://www.w3.org/\S+", "", (ASSETS / "page.css").read_text()).replace("/*", "").replace(
        "*/", ""
    )
    assert (await ask.get("/assets/absent.js")).status == 404
    assert (await ask.get("/assets/..%2fsite.py")).status == 404


async def test_every_page_is_drawn_and_looking_changes_nothing(ask: Caller, connection) -> None:  # noqa: F811
    run_id = await ask.insert(payload={"a": 1})
    await worker_row(connection)
    before = await contents(connection)
    for path in (*PAGES, f"/runs/{run_id}", "/runs?state=pending&kind=k&project_id=default&mode=live&since=1h&q=a&worker=w"):
        page = checked(await ask.get(path, headers=HTML))
        assert "main" in page.ids, path
        assert not any(link.startswith("//") for link in page.links)
        assert await contents(connection) == before, path


async def contents(connection: asyncpg.Connection) -> dict[str, str]:
    """Every row of every table of ours, with the transaction that wrote it. What the server does for itself writes none."""
    of_ours = "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'notifyworker'::regnamespace AND relkind = 'r'"
    query = "SELECT coalesce(string_agg(t.xmin || ' ' || t::text, ', ' ORDER BY t.ctid), '') FROM {} AS t"
    return {table: await connection.fetchval(query.format(table)) for (table,) in await connection.fetch(of_ours)}


async def test_the_pages_pool_only_reads(dsn: str) -> None:
    pool = Pool(dsn, "notifyworker", purpose="page")
    await pool.open()
    try:
        async with pool.snapshot() as on:
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await on.fetch("INSERT INTO notifyworker.runs (kind) VALUES ('a')")
        async with pool.snapshot() as on:
            assert await on.fetchval("SELECT current_setting('statement_timeout')") == "2s"
            with pytest.raises(asyncpg.QueryCanceledError):
                await on.fetch("SELECT pg_sleep(10)")
        async with pool.snapshot() as on:  # and is of use again
            assert await on.fetchval("SELECT 1") == 1
    finally:
        pool.close()


async def test_programs_are_answered_as_before(ask: Caller) -> None:  # noqa: F811
    await ask.insert()
    for path in ("/runs", "/workers", "/reaper", "/schedules", "/pauses", "/system", "/audit", "/shadow"):
        for accept in ("application/json", "*/*"):
            answer = await ask.get(path, headers={"Accept": accept})
            assert answer.headers["Content-Type"] == "application/json", path
    data = (await ask.get("/", headers={"Accept": "application/json"})).json
    assert data["live"]["pending"] == 1
    assert data["kinds"][0]["kind"] == "k"
    assert (await ask.get("/")).headers["Content-Type"].startswith("text/html")


async def test_a_base_path(dsn: str) -> None:
    async with serve(dsn, prefix="/queue") as ask:  # noqa: F811
        for headers, base in ((HTML, "/queue"), ({**HTML, "X-Forwarded-Prefix": "/other/"}, "/other")):
            text = (await ask.get("/", headers=headers)).text
            links = Checked(text.replace(f'src="{base}/', 'src="/')).links
            assert all(link.startswith((base, "#", "/assets/")) for link in links), links
            assert f'hx-get="{base}/"' in text
        told = (await ask.get("/", headers={**HTML, "X-Forwarded-Prefix": '"><script>'})).text
        assert "<script>" not in told
    for wrong in ("queue", "/queue/", "/a b", "//x", '/"'):
        with pytest.raises(SettingsError, match="prefix"):
            Settings.load(keywords={"dsn": dsn, "prefix": wrong})


# What it says


@pytest.mark.parametrize(
    ("needs", "said"),
    [
        ([], "All is well."),
        ([Need("bad", "k fails", "")], "One thing needs you. The rest keeps up."),
        ([Need("bad", "k fails", ""), Need("warn", "w", "")], "Two things need you. The rest keeps up."),
        ([Need("bad", "No worker is here, 3 runs wait", "")], "One thing needs you."),
    ],
)
def test_the_first_sentence(needs: list[Need], said: str) -> None:
    assert sentence(needs, is_idle=False) == said


async def test_the_first_sentence_of_real_trouble(ask: Caller, connection) -> None:  # noqa: F811
    assert "Nothing has run yet." in words(await ask.get("/", headers=HTML))
    await ask.insert()
    ask.worker.reasons = []
    told = words(await fresh(ask, "/"))
    assert "No worker is here, 1 run waits" in told
    assert "One thing needs you." in told
    await worker_row(connection, kinds=["other"])
    assert "Nobody executes k" in words(await fresh(ask, "/"))
    await connection.execute("UPDATE notifyworker.workers SET kinds = '{k}'")
    await connection.execute("UPDATE notifyworker.reaper SET last_pass_at = now()")
    assert "All is well." in words(await fresh(ask, "/"))
    await claim(connection, "w:1:a")
    await connection.execute("UPDATE notifyworker.workers SET heartbeat_at = now() - interval '50 s'")
    told = words(await fresh(ask, "/"))
    assert "Worker w:1 is silent and holds 1 lease" in told
    assert "50 s ago" in told


async def fresh(ask: Caller, path: str) -> Answer:  # noqa: F811
    """As it is now: what the page keeps for two seconds is read anew."""
    for route in ask.sidecar._runner.app.middlewares:  # type: ignore[union-attr]
        if hasattr(route, "__self__") and hasattr(route.__self__, "stale"):
            route.__self__.stale()
    return await ask.get(path, headers=HTML)


async def test_a_kind_that_fails_is_told_with_its_cause(ask: Caller, connection) -> None:  # noqa: F811
    at = (datetime.now(UTC) - timedelta(minutes=3)).isoformat()
    for _ in range(6):
        await ask.insert(kind="hook", project_id="kestrel")
        await claim(connection, "w:1:a")
        entry = {"attempt": 1, "code": "E-RUN-001", "message": "ConnectTimeout: host", "at": at, "worker": "w:1:a"}
        await settle(connection, errors=json.dumps([entry]))
    await worker_row(connection)
    told = words(await fresh(ask, "/"))

    assert "hook fails for kestrel" in told
    assert "6 of 6 attempts in the last 15 minutes." in told
    assert "ConnectTimeout: host" in told


def test_trouble_of_one_project_is_not_the_kinds() -> None:
    def cause(project: str, attempts: int, projects: int = 1, message: str = "m") -> dict[str, Any]:
        return {"kind": "k", "project_id": project, "projects": projects, "attempts": attempts, "message": message}

    assert [(kind, project) for kind, project, _ in suspects([cause("a", 9), cause("b", 4)])] == [("k", "a")]
    assert [(k, p) for k, p, _ in suspects([cause(p, 2) for p in "abcd"])] == [("k", None)]
    assert suspects([cause("a", 4)]) == []


async def test_a_run_shows_its_attempts_and_what_was_done_by_hand(ask: Caller, connection) -> None:  # noqa: F811
    await ask.insert(
        payload={"order": 12345678901234567890123},
        headers={"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
    )
    await claim(connection, "w:1:a")
    now = datetime.now(UTC)
    errors = [
        {"attempt": 1, "code": "E-RUN-002", "message": "the lease expired", "at": now.isoformat(), "worker": "x:9:b", "started_at": (now - timedelta(seconds=9)).isoformat()},
        {"attempt": 2, "code": "E-RUN-001", "message": "ValueError: no", "traceback": 'Traceback:\n  File "x.py", line 1\nValueError: no', "at": now.isoformat(), "worker": "w:1:a"},
        "not ours", {"at": 7, "attempt": "x"}, {"at": "2026-01-01T00:00:00"},
    ]  # fmt: skip
    run_id = await settle(connection, errors=json.dumps(errors))
    page = await ask.get(f"/runs/{run_id}", headers=HTML)
    checked(page)
    told = words(page)

    assert "taken over" in told
    assert "ran 9 s" in page.text
    assert "ValueError: no" in told
    assert "12345678901234567890123" in told
    assert "4bf92f3577b34da6a3ce929d0e0e4736" in told
    assert (await act(ask, "runs", do="retry", id=str(run_id), back=f"/runs/{run_id}")).status == 303
    assert "retry by local" in words(await fresh(ask, f"/runs/{run_id}"))
    assert (await ask.get(f"/runs/{uuid.uuid4()}", headers=HTML)).status == 404


async def test_lists_go_on_by_key_and_find_by_text(ask: Caller, connection) -> None:  # noqa: F811
    ids = [await ask.insert(payload={"n": number}) for number in range(120)]
    found: list[str] = []
    path = "/runs"
    while path:
        answer = await ask.get(path, headers=HTML)
        found += re.findall(r'<tr id="r-([0-9a-f-]+)"', answer.text)
        older = re.search(r'rel="next" href="([^"]+)"', answer.text)
        path = html.unescape(older[1]) if older else ""
    assert found == ids[::-1]
    one = await ask.get("/runs?" + urlencode({"q": '"n": 77}'}), headers=HTML)
    assert re.findall(r'<tr id="r-([0-9a-f-]+)"', one.text) == [ids[77]]
    by_end = await ask.get(f"/runs?q={ids[5][-8:]}", headers=HTML)
    assert (by_end.status, by_end.headers["Location"]) == (303, f"/runs/{ids[5]}")
    for wrong in ("state=x", "mode=x", "since=yesterday", "cursor=x", "limit=0&nonsense=1", "kind=" + "k" * 201, "q=%00"):
        assert (await ask.get(f"/runs?{wrong}", headers=HTML)).status == 400, wrong


# What can be done


async def test_each_action_asks_first_and_tells_the_audit(ask: Caller, connection) -> None:  # noqa: F811
    ids = [await ask.insert() for _ in range(3)]
    await connection.execute("INSERT INTO notifyworker.schedules (name, cron, kind) VALUES ('s', '* * * * *', 'k')")
    asked = await act(ask, "runs", sure=False, do="cancel", id=ids, back="/runs?state=pending")
    checked(asked)
    assert "Cancel 3 runs?" in words(asked)
    assert "not undone" in words(asked)
    assert await connection.fetchval("SELECT count(*) FROM notifyworker.runs") == 3
    assert await connection.fetchval("SELECT count(*) FROM notifyworker.audit") == 0

    done = await act(ask, "runs", do="cancel", id=[*ids, str(uuid.uuid4())], back="/runs?state=pending")
    assert done.status == 303
    assert re.fullmatch(r"/runs\?state=pending&done=\d+", done.headers["Location"])
    assert "Cancel: 3 of 3 done" in words(await ask.get(done.headers["Location"], headers=HTML))
    for name, fields in (
        ("runs", {"do": "retry", "all": "1", "state": "cancelled"}),
        ("pause", {"kind": "k", "seconds": "900", "reason": "it is down"}),
        ("resume", {"kind": "k"}),
        ("schedule", {"name": "s", "paused": "1"}),
        ("pause", {"kind": "k", "until": "2999-01-01T00:00Z"}),
        ("runs", {"do": "cancel", "all": "1", "state": "pending", "since": "1h"}),
        ("runs", {"do": "retry", "all": "1", "state": "cancelled", "mode": "live"}),  # which the statements for many don't know
        ("runs", {"do": "cancel", "id": ids[0]}),
        ("again", {"id": ids[0], "how": "replay"}),
        ("again", {"id": ids[0], "how": "shadow"}),
        ("again", {"id": ids[0], "how": "edit", "payload": '{"b": 2}'}),
        ("limit", {"kind": "k", "max_running": "3", "rate": "5", "per_s": "2"}),
        ("share", {"project_id": "acme", "weight": "2"}),
        ("reaper", {}),
    ):
        checked(await act(ask, name, sure=False, **fields))
        assert (await act(ask, name, **fields)).status == 303, name
    rows = await connection.fetch("SELECT action, actor, matched, changed, target FROM notifyworker.audit ORDER BY audit_id")
    assert [(row["action"], row["changed"]) for row in rows] == [
        ("cancel", 3), ("retry", 3), ("pause", 1), ("resume", 1), ("pause schedule", 1), ("pause", 1),
        ("cancel", 3), ("retry", 3), ("cancel", 1), ("replay", 1), ("shadow", 1), ("edit", 1), ("limit", 1), ("share", 1),
        ("reaper pass", 0),
    ]  # fmt: skip
    assert json.loads(rows[1]["target"]) == {"state": "cancelled"}
    assert {row["actor"] for row in rows} == {"local"}
    assert await connection.fetchval("SELECT count(*) FROM notifyworker.runs WHERE is_shadow") == 1
    assert await connection.fetchval("SELECT count(*) FROM notifyworker.runs WHERE replay_of = $1", uuid.UUID(ids[0])) == 1
    edited = await connection.fetchrow("SELECT payload, state FROM notifyworker.runs WHERE run_id = $1", uuid.UUID(ids[0]))
    assert (json.loads(edited["payload"]), edited["state"]) == ({"b": 2}, "pending")
    paused = words(await ask.get("/pauses", headers=HTML))
    assert "0 of 3" in paused
    assert "5 in 2 s" in paused
    assert "acme2" in paused.replace(" ", "")
    for name, fields in (("limit", {"kind": "k", "end": "1"}), ("share", {"project_id": "acme", "weight": "1"})):
        assert (await act(ask, name, **fields)).status == 303
    assert "slots alone decide" in words(await ask.get("/pauses", headers=HTML))
    assert "replay" in words(await ask.get("/audit", headers=HTML))


async def test_a_pass_of_the_reaper_takes_what_has_expired_alone(ask: Caller, connection) -> None:  # noqa: F811
    for owner, lease in (("a", "-1 s"), ("b", "1 min")):
        await ask.insert()
        await claim(connection, owner)
        await connection.execute(
            "UPDATE notifyworker.runs SET lease_expires_at = now() + $1::text::interval WHERE lease_owner = $2", lease, owner
        )
    assert (await act(ask, "reaper")).status == 303
    assert await connection.fetchval("SELECT array_agg(lease_owner) FROM notifyworker.runs WHERE state = 'running'") == ["b"]
    assert (
        await connection.fetchval("SELECT outcome FROM notifyworker.audit")
        == "1 handed out again, 0 failed on their last attempt"
    )


async def test_what_an_action_refuses(ask: Caller, connection) -> None:  # noqa: F811
    run_id = await ask.insert()
    for name, fields, status in (
        ("runs", {"do": "cancel"}, 400), ("runs", {"do": "forget", "id": run_id}, 400), ("runs", {"do": "cancel", "id": "x"}, 400),
        ("pause", {}, 400), ("pause", {"kind": "k", "seconds": "soon"}, 400), ("pause", {"kind": "k", "until": "soon"}, 400),
        ("pause", {"kind": "k", "until": "1999-01-01T00:00Z"}, 400), ("limit", {"kind": "k"}, 400),
        ("limit", {"max_running": "many"}, 400), ("share", {"project_id": "a", "weight": "0"}, 400), ("drain", {"worker": "x"}, 400),
        ("again", {"id": run_id, "how": "replay"}, 409), ("schedule", {"name": "s"}, 400), ("absent", {}, 404),
        ("again", {"id": run_id, "how": "edit", "payload": "{"}, 400), ("again", {"id": str(uuid.uuid4()), "how": "replay"}, 404),
        ("runs", {"do": ["cancel", "retry"], "id": run_id}, 400),
    ):  # fmt: skip
        assert (await act(ask, name, **fields)).status == status, (name, fields)
    cross = {**FORM, "Sec-Fetch-Site": "cross-site"}
    assert (await act(ask, "runs", do="cancel", id=run_id, headers=cross)).status == 403
    assert (await ask.post("/actions/runs", json={"do": "cancel"}, headers=HTML)).status == 415
    for back in ("//evil.example", "https://evil.example", "/\\evil.example", "/x\r\nSet-Cookie: a=b"):
        assert (await act(ask, "reaper", back=back)).headers["Location"].startswith("/?done="), back
    assert await connection.fetchval("SELECT state FROM notifyworker.runs") == "pending"


# Who may


async def test_tokens_with_names_and_roles(dsn: str, connection) -> None:
    async with serve(dsn, tokens="anna:operator:s3cret-anna,wall:viewer:s3cret-wall") as ask:  # noqa: F811
        refused = await ask.get("/runs?state=failed", headers=HTML)
        assert (refused.status, refused.headers["Location"]) == (303, "/login?next=%2Fruns%3Fstate%3Dfailed")
        checked(await ask.get("/login?next=/runs", headers=HTML))
        wrong = await ask.post("/login", data={"token": "nonsense"}, headers=HTML)
        checked(wrong, 401)
        assert "This token is not known here." in words(wrong)

        for secret, status in (("s3cret-wall", 403), ("s3cret-anna", 303)):
            ask.session.cookie_jar.clear()
            let_in = await ask.post("/login", data={"token": secret, "next": "/runs?state=failed"}, headers=HTML)
            assert (let_in.status, let_in.headers["Location"]) == (303, "/runs?state=failed")
            mine = {"Cookie": let_in.headers["Set-Cookie"].partition(";")[0]}
            page = await ask.get("/pauses", headers=HTML | mine)
            assert ("Pause something" in page.text) == (status == 303)
            assert (await act(ask, "pause", kind="k", headers=FORM | mine)).status == status
            assert (await ask.post("/runs", json={"kind": "k"}, headers=mine)).status == (403 if status == 403 else 201)
        assert await connection.fetch("SELECT actor, action FROM notifyworker.audit") == [("anna", "pause")]
        assert (await ask.get("/runs", headers={"Authorization": "Bearer s3cret-wall"})).status == 200
        assert (await ask.post("/logout", headers=HTML | mine)).headers["Location"] == "/login"
        assert (await ask.get("/", headers=HTML)).status == 303
        for path in ("//evil.example", "https://evil.example", "/\\evil.example"):
            target = await ask.post("/login", data={"token": "s3cret-anna", "next": path}, headers=HTML)
            assert target.headers["Location"] == "/", path


@pytest.mark.parametrize("tokens", ["", "anna", "anna:operator", "anna:operator:short", "anna:admin:s3cret-anna", "a b:viewer:s3cret-anna", "token:viewer:s3cret-anna", "a:viewer:s3cret-anna,a:viewer:s3cret-anno"])  # fmt: skip
def test_tokens_that_are_none(tokens: str) -> None:
    if not tokens:
        return
    with pytest.raises(SettingsError, match="tokens: entry") as refused:
        Settings.load(keywords={"dsn": "postgresql://h/d", "tokens": tokens})
    assert "s3cret" not in str(refused.value)


# What a producer may send


async def test_nothing_a_producer_sends_becomes_markup(ask: Caller, connection) -> None:  # noqa: F811
    """Every field that a producer, a handler or an operator fills, on every page that shows it."""
    kind, project = NASTY[:200], f"p{NASTY}"[:200]
    live = await ask.insert(
        kind=kind,
        project_id=project,
        payload={NASTY: [NASTY]},
        headers={"traceparent": NASTY, "schedule": NASTY, NASTY: 1},
        idempotency_key=NASTY,
    )
    await ask.insert(kind=kind, project_id=project, payload=NASTY)
    await claim(connection, NASTY)
    at = datetime.now(UTC).isoformat()
    entry = {
        "attempt": 1,
        "code": NASTY,
        "message": NASTY,
        "traceback": f'Traceback\n  File "{NASTY}"\n{NASTY}',
        "at": at,
        "worker": NASTY,
    }
    await connection.execute(
        "UPDATE notifyworker.runs SET errors = $1, progress = $2", json.dumps([entry] * 7), json.dumps({NASTY: NASTY})
    )
    settled = await settle(connection, errors=json.dumps([entry] * 7), effects=json.dumps([{"name": NASTY, "args": [NASTY]}]))
    await connection.execute(
        "INSERT INTO notifyworker.schedules (name, cron, kind, timezone, error) VALUES ($1, $1, $1, 'UTC', $1)", NASTY
    )
    await connection.execute("UPDATE notifyworker.schedules SET error = $1", NASTY)
    await connection.execute("SELECT notifyworker.pause($1, $1, NULL, $1)", NASTY)
    await worker_row(connection, NASTY, kinds=[NASTY])
    await connection.execute("UPDATE notifyworker.reaper SET leader = $1, mode = $1, last_pass_at = now()", NASTY)
    await connection.execute("INSERT INTO notifyworker.reaps (run_id, kind, project_id, attempt, taken_from, taken_by, reason, became) VALUES ($1, $2, $2, 1, $2, $2, 'lease_expired', 'failed')", settled, NASTY)  # fmt: skip
    await connection.execute(
        "INSERT INTO notifyworker.audit (actor, action, target, matched, changed, outcome) VALUES ($1, $1, $2, 1, 1, $1)",
        NASTY,
        json.dumps({"run_id": str(settled), "x": NASTY}),
    )
    await connection.execute(
        """INSERT INTO notifyworker.shadow_pairs (live_run_id, shadow_run_id, kind, project_id, version, became, ways, diff, live_state, shadow_state)
           VALUES ($1, $1, $2, $2, $3, 'different', '{result,effects}', $2, 'failed', 'completed')""",
        settled, NASTY, NASTY[:100],
    )  # fmt: skip
    await connection.execute("SELECT notifyworker.set_mirror($1, $2, 10, $1)", NASTY, NASTY[:100])
    await connection.execute("SELECT notifyworker.set_version($1, $2, $1, $1, $1)", NASTY, NASTY[:100])
    ask.worker.reasons = [NASTY]
    query = urlencode({"kind": kind, "project_id": project, "worker": NASTY, "q": NASTY})
    for path in (
        *PAGES,
        f"/runs/{live}",
        f"/runs/{settled}",
        f"/runs?{query}",
        f"/workers?{urlencode({'worker': NASTY})}",
        "/?done=1",
        f"/shadow?{urlencode({'kind': NASTY, 'project_id': NASTY, 'version': NASTY[:100]})}",
    ):
        answer = await fresh(ask, path)
        checked(answer)
        assert "<script>alert" not in answer.text, path
        assert "49" not in re.findall(r"\{\{7\*7\}\}|\b49\b", answer.text.replace(NASTY, "")) or "{{7*7}}" in html.unescape(
            answer.text
        ), path
    for name, fields in (
        ("pause", {"kind": NASTY, "reason": NASTY}),
        ("schedule", {"name": NASTY, "paused": "1"}),
        ("runs", {"do": "cancel", "all": "1", "kind": kind, "back": f"/{NASTY}"}),
        ("again", {"id": str(settled), "how": "edit"}),
        ("promote", {"kind": NASTY, "version": NASTY[:100], "project_id": NASTY}),
        ("back", {"kind": NASTY, "project_id": NASTY}),
        ("mirror", {"kind": NASTY, "version": NASTY[:100], "project_id": NASTY}),
    ):
        checked(await act(ask, name, sure=False, **fields))
    checked(await ask.get("/runs?" + urlencode({NASTY: NASTY}), headers=HTML), 400)
    checked(await ask.get("/" + "%3Cscript%3Ealert(1)%3C/script%3E", headers=HTML), 404)


# When the database is away


async def test_it_shows_what_it_knew_while_the_database_is_away() -> None:
    async with Cluster() as cluster:
        await migrate(cluster.dsn, "notifyworker")
        async with serve(cluster.dsn) as ask:
            await ask.insert(kind="invoice.sync")
            assert "invoice.sync" in words(await ask.get("/", headers=HTML))
            await cluster.stop()
            for path in PAGES:
                answer = await fresh(ask, path)
                checked(answer, 503)
                assert "The database has not answered since" in words(answer), path
            told = words(await fresh(ask, "/"))
            assert "from memory" in told
            assert "invoice.sync" in told
            assert 'action="/actions/' not in answer.text
            assert (await act(ask, "reaper")).status == 503
            await cluster.start()
            assert "invoice.sync" in words(await ask.get("/", headers=HTML))


async def test_the_pulse_beats_for_what_is_new_and_ends_with_the_sidecar(dsn: str) -> None:
    async with serve(dsn) as ask:  # noqa: F811
        assert ask.worker.sink is None
        async with ask.session.get(ask.sidecar.url + "/live") as response:
            assert (await response.content.readuntil(b"\n\n")) == b"retry: 2000\n\n"
            await eventually(lambda: ask.worker.sink is not None)
            ask.worker.sink({"run_id": "x", "state": "completed"})
            assert (await response.content.readuntil(b"\n\n")).startswith(b"event: tick\n")
        await eventually(lambda: ask.worker.sink is None)


def test_numbers_for_people() -> None:
    assert [shown.duration(s) for s in (0.0123, 0.9996, 1.5, 3, 42, 119, 150, 7300, 200_000)] == [
        "12 ms", "1 s", "1.5 s", "3 s", "42 s", "119 s", "2 min", "2 h", "2 d",
    ]  # fmt: skip
    assert shown.count(100_000, 100_000) == "100,000+"
    assert shown.plural(1, "run") == "1 run"
    assert [charts.ceiling(n) for n in (0, 0.03, 1, 7, 816)] == [1, 0.05, 1, 10, 1000]


def test_the_tokens_of_the_docs_are_some() -> None:
    text = (Path(__file__).parents[1] / "docs" / "page.md").read_text()
    (line,) = re.findall(r"^NOTIFYWORKER_TOKENS=(.*)$", text, re.MULTILINE)
    assert [(one.name, one.role) for one in named_tokens_of(line)] == [("anna", "operator"), ("wall", "viewer")]
    for path in re.findall(r"\]\((page/\w+\.png)\)", text):
        assert (Path(__file__).parents[1] / "docs" / path).stat().st_size < 150_000


async def test_all_that_match_are_done_however_many(ask: Caller, connection) -> None:  # noqa: F811
    await connection.execute("INSERT INTO notifyworker.runs (kind) SELECT 'k' FROM generate_series(1, 10500)")
    await ask.insert(kind="other")
    filter_ = {"do": "cancel", "all": "1", "kind": "k"}
    assert "Cancel 10,500 runs?" in words(await act(ask, "runs", sure=False, **filter_))
    done = await act(ask, "runs", **filter_)
    assert "Cancel: 10,500 of 10,500 done" in words(await ask.get(done.headers["Location"], headers=HTML))
    assert await connection.fetchval("SELECT array_agg(kind) FROM notifyworker.runs") == ["other"]


async def test_a_run_shows_its_steps_its_log_and_what_it_repeats(make_worker, connection) -> None:
    worker = make_worker(sidecar=True, port=0)

    @worker.handler("order")
    async def order(run: Run) -> None:
        await run.step("charge the card", _answer)
        run.log.warning("a line was skipped <b>", number=17)
        if run.payload.get("has_child"):
            await run.start("nobody's")

    async with worker, aiohttp.ClientSession(worker.url, headers=HTML) as session:
        first = await connection.fetchval(
            """INSERT INTO notifyworker.runs (kind, payload) VALUES ('order', '{"has_child": 1}') RETURNING run_id"""
        )
        await eventually(lambda: _is_settled(connection, first))
        child = await connection.fetchval("SELECT run_id FROM notifyworker.runs WHERE kind = 'nobody''s'")
        async with session.get(f"/runs/{child}") as response:
            assert f"/runs/{first}" in await response.text()
        again = await connection.fetchval("SELECT notifyworker.replay($1)", first)
        async with session.get(f"/runs/{first}") as response:
            page = Answer(response.status, response.headers, await response.text())
        checked(page)
        for wanted in ("charge the card", '"paid"', "a line was skipped <b>", "number=17", "nobody's"):
            assert wanted in words(page), wanted
        async with session.get(f"/runs/{again}") as response:
            assert f"/runs/{first}" in await response.text()


async def _answer() -> dict[str, int]:
    return {"paid": 3}


async def _is_settled(connection: asyncpg.Connection, run_id: uuid.UUID) -> bool:
    return bool(await connection.fetchval("SELECT true FROM notifyworker.run_history WHERE run_id = $1", run_id))


async def test_a_list_is_read_along_its_order_however_few_fit(dsn: str, connection) -> None:
    pool = Pool(dsn, "notifyworker")
    await pool.open()
    for given, is_walked in (
        ({"worker": "absent"}, True),
        ({"state": "failed"}, False),
        ({"state": "running", "kind": "k"}, False),
    ):
        async with pool.snapshot() as on:
            await find(on, Queries("notifyworker"), filter_of(given, datetime.now(UTC)), None, 50)
            sorts = (await on.fetch("SHOW enable_sort"))[0][0]
        assert sorts == ("off" if is_walked else "on"), given
    pool.close()


# What it costs

PULSE = {**HTML, "HX-Request": "true"}


async def test_pages_that_follow_the_pulse_are_drawn_once_for_all(ask: Caller, monkeypatch) -> None:  # noqa: F811
    drawn: list[str] = []
    plain = Site.render

    def counted(self: Site, request: Any, template: str, *args: Any, **options: Any) -> Any:
        drawn.append(template)
        return plain(self, request, template, *args, **options)

    monkeypatch.setattr(Site, "render", counted)
    monkeypatch.setattr(views, "FRESH_S", SURELY_S)
    first = await ask.get("/runs", headers=PULSE)
    same = await asyncio.gather(*(ask.get("/runs", headers=PULSE) for _ in range(10)))
    assert {answer.text for answer in same} == {first.text}
    assert drawn == ["runs.html"]
    await ask.get("/runs?state=failed", headers=PULSE)
    assert len(drawn) == 2
    run_id = await ask.insert(kind="k")
    assert run_id not in (await ask.get("/runs", headers=PULSE)).text
    assert run_id in (await ask.get("/runs", headers=HTML)).text  # who asks by hand is shown this moment
    checked(await ask.get("/runs", headers=PULSE))


async def test_a_page_that_did_not_change_is_not_sent_again(ask: Caller, connection) -> None:  # noqa: F811
    await fresh(ask, "/schedules")
    first = await ask.get("/schedules", headers=PULSE)
    (seen,) = re.findall(r'data-seen="([0-9a-f]{16})"', first.text)
    for route in (None, "stale"):
        if route:  # drawn anew, at another moment
            await fresh(ask, "/schedules")
        again = await ask.get("/schedules", headers={**PULSE, "X-Seen": seen})
        assert (again.status, again.text) == (204, "")
    await connection.execute("INSERT INTO notifyworker.schedules (name, cron, kind) VALUES ('new', '* * * * *', 'k')")
    await fresh(ask, "/schedules")
    changed = await ask.get("/schedules", headers={**PULSE, "X-Seen": seen})
    assert "new" in words(changed)


async def test_for_pages_a_worker_tells_of_one_run_until_they_are_drawn(dsn: str) -> None:
    async with serve(dsn) as ask, ask.session.get(ask.sidecar.url + "/live") as response:  # noqa: F811
        await response.content.readuntil(b"\n\n")
        await eventually(lambda: ask.worker.sink is not None)
        ask.worker.sink({"run_id": "x", "state": "running"})
        assert ask.worker.sink is None
        assert (await response.content.readuntil(b"\n\n")).startswith(b"event: tick\n")
        await eventually(lambda: ask.worker.sink is not None)


async def test_times_of_a_kind_are_found_by_its_index_however_rare_it_is(dsn: str, connection) -> None:
    await connection.execute(
        """INSERT INTO notifyworker.run_history (run_id, run_at, created_at, started_at, lease_token, priority, max_attempts, attempt,
               is_shadow, state, kind, project_id, payload, headers, errors)
           SELECT notifyworker.uuid7(), now(), now(), now(), 1, 0, 3, 1, false, 'completed', 'k' || n % 20, 'p', '{}', '{}', '[]'
             FROM generate_series(1, 20000) AS n"""
    )
    await connection.execute("ANALYZE notifyworker.run_history")
    for name, arguments in (("kind_times", (["rare"], 200)), ("last_runs", (["s"], ["rare"], 500))):
        text = render(folder("http/page/sql").joinpath(f"{name}.sql").read_text(), "notifyworker")
        plan = "\n".join(row[0] for row in await connection.fetch("EXPLAIN (ANALYZE, TIMING off) " + text, *arguments))
        removed = [int(number) for number in re.findall(r"Rows Removed by Filter: (\d+)", plan)]
        assert sum(removed) < 1000, plan


# What a run is one of


async def test_a_run_leads_to_its_trace_and_to_its_twin(dsn: str, connection) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    async with serve(dsn, trace_url="https://traces.example/t/{trace_id}?from=1") as ask:  # noqa: F811
        run_id = await ask.insert(kind="k", headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "big": 2**70})
        page = await fresh(ask, f"/runs/{run_id}")
        assert f'href="https://traces.example/t/{trace}?from=1"' in page.text
        for wrong in ("00-x-y-z", f'00-{trace}"><b>-00f067aa0ba902b7-01', "00-" + "0" * 32 + "-00f067aa0ba902b7-01", 7):
            other = await ask.insert(kind="k", headers={"traceparent": wrong})
            assert "traces.example" not in (await fresh(ask, f"/runs/{other}")).text
        assert (await act(ask, "again", id=run_id, how="shadow")).status == 303
        copy = await connection.fetchrow("SELECT run_id, headers FROM notifyworker.runs WHERE is_shadow")
        assert json.loads(copy["headers"])["big"] == 2**70
        for one, twin in ((run_id, copy["run_id"]), (copy["run_id"], run_id)):
            assert f'/runs/{twin}"' in (await fresh(ask, f"/runs/{one}")).text
        mirrored, live = uuid.uuid4(), await ask.insert(kind="k")
        await connection.execute(
            "INSERT INTO notifyworker.shadow_pairs (live_run_id, shadow_run_id, kind, project_id, version, became) "
            "VALUES ($1, $2, 'k', 'p', '2', 'different')", uuid.UUID(live), mirrored
        )  # fmt: skip
        told = await fresh(ask, f"/runs/{live}")
        assert f'/runs/{mirrored}"' in told.text
        assert "version 2, differs" in words(told)


@pytest.mark.parametrize("wrong", ["https://traces.example/", "javascript:{trace_id}", "https://x/{trace_id} ", "{trace_id}"])
def test_addresses_of_traces_that_are_none(wrong: str) -> None:
    with pytest.raises(SettingsError, match="trace_url"):
        Settings.load(keywords={"dsn": "postgresql://h/d", "trace_url": wrong})
