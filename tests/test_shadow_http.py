"""Shadow over HTTP: the report, its rules, and the switch of versions; and the page that shows them."""

import uuid
from typing import Any

import asyncpg
from test_http import Caller, ask, claim, serve  # noqa: F401 - a fixture
from test_page import FORM, HTML, act, checked, fresh, settle, words

from notifyworker.http.page import beside, charts, shown

TOKENS = "anna:operator:s3cret-anna,wall:viewer:s3cret-wall"
ANNA = {"Authorization": "Bearer s3cret-anna"}
WALL = {"Authorization": "Bearer s3cret-wall"}


async def compared(
    connection: asyncpg.Connection, same: int, different: int, *, kind: str = "quote", version: str = "v2"
) -> None:
    """So many pairs, as comparing leaves them."""
    await connection.execute(
        """INSERT INTO notifyworker.shadow_pairs (live_run_id, shadow_run_id, kind, project_id, version, became, ways, diff,
               live_state, shadow_state, live_s, shadow_s, copied_at, compared_at)
           SELECT notifyworker.uuid7(), notifyworker.uuid7(), $3, 'default', $4, CASE WHEN n <= $1::int THEN 'same' ELSE 'different' END,
                  CASE WHEN n > $1 THEN '{result,effects}'::text[] ELSE '{}'::text[] END,
                  CASE WHEN n > $1 THEN 'result.cents: 119 -> 120' END, 'completed', 'completed', 0.01, 0.02, now(), now()
             FROM generate_series(1, $1::int + $2::int) AS n""",
        same, different, kind, version,
    )  # fmt: skip


async def deployed(connection: asyncpg.Connection, *versions: str) -> None:
    """One worker that has these, as kind@version."""
    await connection.execute(
        """INSERT INTO notifyworker.workers (lease_owner, host, pid, version, kinds, versions, concurrency, running, state, shadow,
               presence, presumed_dead_s, lease_s, heartbeat_interval_s, started_at, heartbeat_at)
           VALUES ('w:1:a', 'h', 1, '0.1.0', '{quote}', $1, 4, 0, 'running', 'honour', false, 10, 60, 600, now(), now())
           ON CONFLICT (lease_owner) DO UPDATE SET versions = excluded.versions""",
        list(versions),
    )


async def live(connection: asyncpg.Connection, kind: str = "quote", project_id: str = "") -> str | None:
    return await connection.fetchval("SELECT notifyworker.live_version($1, $2)", kind, project_id)


async def test_the_rules(ask: Caller) -> None:  # noqa: F811
    rule = {"kind": "quote", "version": "v2", "percent": 10, "project_id": "acme", "per_hour": 500}
    assert (await ask.post("/shadow/mirrors", json=rule)).json == {"set": True}
    assert (await ask.post("/shadow/mirrors", json={**rule, "percent": 20})).status == 201  # the same, changed
    (listed,) = (await ask.get("/shadow/mirrors")).json["mirrors"]
    assert {name: listed[name] for name in rule} == {**rule, "percent": 20}
    assert (listed["in_hour"], listed["waiting"], listed["capped"]) == (0, 0, 0)
    for wrong, field in (
        ({"version": "v2"}, "kind"), ({"kind": "quote"}, "version"), ({**rule, "percent": 0}, "percent"), ({**rule, "percent": 101}, "percent"),
        ({**rule, "per_hour": 0}, "per_hour"), ({**rule, "until": "soon"}, "until"), ({**rule, "until": "1999-01-01T00:00Z"}, "until"),
        ({**rule, "share": 1}, "share"), ({**rule, "version": ""}, "version"), ({**rule, "project_id": ""}, "project_id"),
    ):  # fmt: skip
        await ask.refusal("POST", "/shadow/mirrors", 400, field, json=wrong)
    gone = {"kind": "quote", "version": "v2", "project_id": "acme"}
    await ask.refusal("DELETE", "/shadow/mirrors", 400, "kind", params={"version": "v2"})
    await ask.refusal("DELETE", "/shadow/mirrors", 400, "percent", params={**gone, "percent": "1"})
    assert (await ask("DELETE", "/shadow/mirrors", params={"kind": "quote", "version": "v2"})).json == {"removed": False}
    assert (await ask("DELETE", "/shadow/mirrors", params=gone)).json == {"removed": True}
    assert (await ask.get("/shadow/mirrors")).json == {"mirrors": []}


async def test_the_report(ask: Caller, connection) -> None:  # noqa: F811
    await compared(connection, 97, 3)
    await compared(connection, 5, 0, kind="other")
    await connection.execute("SELECT notifyworker.set_mirror('quote', 'v2', 10)")
    told = (await ask.get("/shadow", params={"kind": "quote", "first": "2", "since": "24h"})).json
    (entry,) = told["shadow"]
    assert (entry["compared"], entry["same"], entry["different"], entry["agreement"]) == (100, 97, 3, 0.97)
    assert 0.91 < entry["agreement_low"] < 0.93
    assert 0.98 < entry["agreement_high"] < 1
    assert entry["ways"] == {"outcome": 0, "failure": 0, "result": 3, "effects": 3}
    assert abs(entry["times"]["factor"] - 2) < 1e-6
    assert [pair["diff"] for pair in entry["differing"]] == ["result.cents: 119 -> 120"] * 2
    assert ([rule["kind"] for rule in told["mirrors"]], told["versions"], told["switches"]) == (["quote"], [], [])
    assert [one["kind"] for one in (await ask.get("/shadow")).json["shadow"]] == ["other", "quote"]
    assert (await ask.get("/shadow", params={"since": "2999-01-01T00:00:00Z"})).json["shadow"] == []
    for name, wrong in (("since", "soon"), ("first", "1001"), ("first", "x"), ("kind", ""), ("limit", "1")):
        await ask.refusal("GET", "/shadow", 400, name, params={name: wrong})


async def test_a_switch_and_the_way_back(dsn: str, connection) -> None:
    await connection.execute("SELECT notifyworker.set_version('quote', 'v1')")
    await connection.execute("DELETE FROM notifyworker.audit")
    async with serve(dsn, tokens=TOKENS) as ask:  # noqa: F811
        await compared(connection, 97, 3)
        switch = {"kind": "quote", "version": "v2"}

        async def refused(status: int, why: str, path: str = "/shadow/promote", headers: Any = ANNA, **body: Any) -> None:
            answer = await ask.post(path, json={"kind": "quote", **body}, headers=headers)
            assert (answer.status, why in answer.json["detail"]) == (status, True), answer.text
            assert await live(connection) == "v1"

        await refused(409, "97 % of 100 runs agree, and 99 % are wanted", version="v2")
        await refused(409, "only 100 runs were compared, and 101 are wanted", version="v2", least_runs=101)
        await refused(409, "only 0 runs were compared", version="v3")
        await refused(409, "no worker has this version", version="v2", least_agreement=0.9)
        await refused(409, "only 0 runs were compared", version="v2", since="2999-01-01T00:00:00Z")
        await refused(409, "was not switched", path="/shadow/back")
        await refused(403, "may look, and change nothing", headers=WALL, version="v2", force=True)
        await refused(403, "may look, and change nothing", path="/shadow/back", headers=WALL)
        await refused(401, "token", headers={}, version="v2", force=True)
        for field, wrong in (
            ("least_agreement", {**switch, "least_agreement": 1.1}), ("least_runs", {**switch, "least_runs": 0}), ("force", {**switch, "force": 1}),
            ("version", {"kind": "quote"}), ("kind", {"version": "v2"}), ("sure", {**switch, "sure": 1}), ("since", {**switch, "since": "soon"}),
            ("project_id", {**switch, "project_id": 1}),
        ):  # fmt: skip
            await ask.refusal("POST", "/shadow/promote", 400, field, json=wrong, headers=ANNA)
        for field, wrong in (("kind", {}), ("version", switch), ("force", {"kind": "quote", "force": "yes"})):
            await ask.refusal("POST", "/shadow/back", 400, field, json=wrong, headers=ANNA)

        await deployed(connection, "quote@v1", "quote@v2")
        done = await ask.post("/shadow/promote", json={**switch, "least_agreement": 0.9}, headers=ANNA)
        assert (done.status, done.json) == (
            200, {**switch, "project_id": None, "was": "v1", "why": "100 compared, 97 % the same"},
        )  # fmt: skip
        assert await live(connection) == "v2"
        back = await ask.post("/shadow/back", json={"kind": "quote"}, headers=ANNA)
        assert (back.json["version"], back.json["was"], await live(connection)) == ("v1", "v2", "v1")
        told = (await ask.get("/shadow", headers=WALL)).json
        assert [(s["actor"], s["was"], s["version"], s["why"]) for s in told["switches"]] == [
            ("anna", "v2", "v1", "back"), ("anna", "v1", "v2", "100 compared, 97 % the same"),
        ]  # fmt: skip
        assert [(v["kind"], v["version"], v["workers"]) for v in told["versions"]] == [("quote", "v1", 1)]


async def test_the_way_back_is_of_the_same_project_and_to_a_version_that_is_there(dsn: str, connection) -> None:
    await connection.execute("SELECT notifyworker.set_version('quote', 'v1')")
    await deployed(connection, "quote@v2")
    async with serve(dsn, tokens=TOKENS) as ask:  # noqa: F811
        for project in ("acme", None):
            body = {"kind": "quote", "version": "v2", "project_id": project, "force": True}
            assert (await ask.post("/shadow/promote", json=body, headers=ANNA)).status == 200
        assert await live(connection, project_id="acme") == "v2"
        refused = await ask.post("/shadow/back", json={"kind": "quote"}, headers=ANNA)
        assert (refused.status, "quote v1: no worker has this version" in refused.json["detail"]) == (409, True)
        done = await ask.post("/shadow/back", json={"kind": "quote", "force": True}, headers=ANNA)
        assert (done.json["version"], done.json["why"]) == ("v1", "forced: back")
        assert (await live(connection), await live(connection, project_id="acme")) == ("v1", "v2")
        await deployed(connection, "quote@v1", "quote@v2")
        other = await ask.post("/shadow/back", json={"kind": "quote", "project_id": "acme"}, headers=ANNA)
        assert (other.json["was"], other.json["version"]) == ("v2", "v1")
        assert (await live(connection), await live(connection, project_id="acme")) == ("v1", "v1")


# The page


async def test_the_page_says_what_is_ready_what_differs_and_what_is_too_few(ask: Caller, connection) -> None:  # noqa: F811
    assert "Nothing is mirrored." in words(await ask.get("/shadow", headers=HTML))
    await connection.execute("SELECT notifyworker.set_mirror('quote', 'v2', 10, NULL, NULL, 500)")
    assert "Nothing is compared yet." in words(await fresh(ask, "/shadow"))
    await deployed(connection, "quote@v2", "ready@v2")
    await compared(connection, 97, 3)
    await compared(connection, 1000, 1, kind="ready")
    await compared(connection, 20, 0, kind="few")
    await compared(connection, 200, 0, kind="absent")
    page = await fresh(ask, "/shadow")
    checked(page)
    told = words(page)
    assert "ready is ready to switch. quote still differs from live; few has run too few times to tell." in told
    assert "absent would be ready, and no worker has it." in told
    assert "97 %91.54 % to 98.97 %" in told.replace("</td><td>", "")
    assert "10 ms, 20 ms" in told
    assert "2.00 times: slower" in told
    assert "quote v2, 3 differences" in told
    assert "result.cents: 119 -> 120" in told
    assert "0 of 500" in told
    assert "ready v2, 1 difference" in words(await ask.get("/shadow?kind=ready", headers=HTML))
    assert "few v2, no difference" in words(await ask.get("/shadow?kind=few&since=7d", headers=HTML))
    assert "no difference of this number" in words(await ask.get("/shadow?kind=quote&n=9", headers=HTML))
    data = (await ask.get("/shadow", headers={"Accept": "application/json"})).json  # the same numbers
    assert {one["kind"]: one["compared"] for one in data["shadow"]} == {"absent": 200, "few": 20, "quote": 100, "ready": 1001}
    for wrong in ("way=x", "n=x", "n=99999999", "since=soon", "kind=", "page=1"):
        assert (await ask.get(f"/shadow?{wrong}", headers=HTML)).status == 400, wrong


async def test_the_page_shows_a_pair_side_by_side(ask: Caller, connection) -> None:  # noqa: F811
    ids: list[uuid.UUID] = []
    for result, effects in (
        ('{"cents": 1190, "at": [1, 2]}', '[{"name": "book", "args": [1], "kwargs": {"cents": 1190}}, {"name": "mail", "args": [], "kwargs": {}}]'),
        ('{"cents": 1185, "at": [1, 2]}', '[{"name": "book", "args": [1], "kwargs": {"cents": 1185}}]'),
    ):  # fmt: skip
        await ask.insert(kind="quote")
        await claim(connection, "w:1:a")
        ids.append(await settle(connection, "completed", result=result, effects=effects))
    await connection.execute(
        """INSERT INTO notifyworker.shadow_pairs (live_run_id, shadow_run_id, kind, project_id, version, became, ways, diff, live_state,
               shadow_state) VALUES ($1, $2, 'quote', 'default', 'v2', 'different', '{result,effects}', 'result.cents: 1190 -> 1185',
               'completed', 'completed')""",
        *ids,
    )
    page = await ask.get("/shadow?way=effects", headers=HTML)
    checked(page)
    told = words(page)
    assert "1, cents=1190" in told
    assert "missing" in told
    assert "<mark>90</mark>" in page.text  # of 1190, what differs from 1185
    assert "<mark>85</mark>" in page.text
    assert "1 of 1 with this cause" in told
    await connection.execute("DELETE FROM notifyworker.run_history")
    assert "Both runs are not kept any more." in words(await fresh(ask, "/shadow"))


def test_two_lists_of_effects_are_put_in_line() -> None:
    live = '[{"name": "a", "args": [1]}, {"name": "b", "args": []}, {"name": "c", "args": [], "kwargs": {"x": "y"}}]'
    shadow = '[{"name": "a", "args": [1]}, {"name": "c", "args": [], "kwargs": {"x": "z"}}, {"name": "...", "more": 4}, 7]'
    found = beside.effects(live, shadow)
    assert found is not None
    assert [(one["name"], one["live"], one["shadow"], one["verdict"]) for one in found] == [
        ("a", "1", "1", "same"), ("b, c", "", 'x="z"', "differs"), ("c, ...", 'x="y"', "4 more", "differs"),
    ]  # fmt: skip
    assert beside.effects(None, shadow) is None
    assert beside.effects("{", shadow) is None
    left, right = beside.results('{"a": 12345678901234567890123}', None)
    assert '  "a": 12345678901234567890123' in [line.before + line.mark + line.after for line in left]
    assert [line.before + line.mark + line.after for line in right] == ["(none)"]


def test_a_rate_is_never_rounded_up_and_an_interval_stays_in_its_picture() -> None:
    assert [shown.rated(rate) for rate in (1.0, 0.99999, 0.9899, 0.5, 0.0)] == ["100 %", "99.99 %", "98.99 %", "50 %", "0 %"]
    drawn = charts.interval(0.2, 0.995, 1.0, "c-ok", floor=0.85, threshold=0.99)
    assert 'x="0.00%"' in drawn
    assert 'cx="96.67%"' in drawn
    assert "99" in charts.scale(0.0)


async def test_switching_by_the_page_asks_first_with_numbers_and_what_is_refused(dsn: str, connection) -> None:
    await connection.execute("SELECT notifyworker.set_version('quote', 'v1')")
    await deployed(connection, "quote@v1", "quote@v2")
    await compared(connection, 97, 3)
    async with serve(dsn, tokens=TOKENS) as ask:  # noqa: F811
        anna, switch = FORM | ANNA, {"kind": "quote", "version": "v2", "back": "/shadow?kind=quote"}
        viewed = await ask.get("/shadow", headers=HTML | WALL)
        assert "/actions/" not in viewed.text
        for name in ("promote", "back", "mirror"):
            assert (await act(ask, name, headers=FORM | WALL, **switch)).status == 403
        asked = await act(ask, "promote", sure=False, headers=anna, **switch)
        checked(asked)
        for said in (
            "Switch quote to v2?", "Refused unless it is forced: 97 % of 100 runs agree, and 99 % are wanted.", "97 % of 100 runs agree (95 %: 91.54 % to 98.97 %)",
            "3 differ, 3 other results, 3 other effects", "2.00 times as long", "no run is claimed for v1", "1 of 1 worker has v2", "not undone", "Switch nevertheless",
        ):  # fmt: skip
            assert said in words(asked), said
        refused = await act(ask, "promote", headers=anna, **switch)
        checked(refused, 409)
        assert "97 % of 100 runs agree" in words(refused)
        assert await live(connection) == "v1"
        done = await act(ask, "promote", headers=anna, force="1", **switch)
        assert done.status == 303
        assert done.headers["Location"].startswith("/shadow?kind=quote&done=")
        assert "quote v2 is live, v1 was; forced: 100 compared, 97 % the same" in words(
            await ask.get(done.headers["Location"], headers=HTML | ANNA)
        )
        assert await live(connection) == "v2"
        way_back = {"kind": "quote", "live": "v2"}
        asked = await act(ask, "back", sure=False, headers=anna, **way_back)
        checked(asked)
        assert "Go back to v1 of quote? v2 was made live by anna; forced: 100 compared, 97 % the same." in words(asked)
        await connection.execute("SELECT notifyworker.set_version('quote', 'v3')")  # another was faster
        assert (await act(ask, "back", headers=anna, **way_back)).status == 409
        assert await live(connection) == "v3"
        assert (await act(ask, "back", headers=anna, kind="quote", live="v3")).status == 303
        assert await live(connection) == "v2"
        assert (await act(ask, "back", headers=anna, kind="other")).status == 409

        rule = {"kind": "quote", "version": "v2", "percent": "5", "per_hour": "100"}
        assert "5 % of the live runs" in words(await act(ask, "mirror", sure=False, headers=anna, **rule))
        assert await connection.fetchval("SELECT count(*) FROM notifyworker.mirrors") == 0
        assert (await act(ask, "mirror", headers=anna, **rule)).status == 303
        assert await connection.fetchval("SELECT percent FROM notifyworker.mirrors") == 5
        assert (await act(ask, "mirror", headers=anna, **{**rule, "percent": "many"})).status == 400
        assert (await act(ask, "mirror", headers=anna, end="1", **rule)).status == 303
        assert await connection.fetchval("SELECT count(*) FROM notifyworker.mirrors") == 0
    told = await connection.fetch("SELECT action, actor, changed FROM notifyworker.audit WHERE actor = 'anna' ORDER BY audit_id")
    assert [tuple(row.values()) for row in told if row["action"] != "version.set"] == [
        ("promote", "anna", 0), ("promote", "anna", 1), ("switch back", "anna", 0), ("switch back", "anna", 1), ("mirror", "anna", 1),
        ("end mirror", "anna", 1),
    ]  # fmt: skip
    assert sum(row["action"] == "version.set" for row in told) == 2


async def test_no_other_site_switches_anything(ask: Caller, connection) -> None:  # noqa: F811
    cross = {"Sec-Fetch-Site": "cross-site"}
    for name in ("promote", "back", "mirror"):
        assert (await act(ask, name, kind="quote", version="v2", force="1", headers=FORM | cross)).status == 403
    for path in ("/shadow/promote", "/shadow/back", "/shadow/mirrors"):
        assert (await ask.post(path, json={"kind": "quote", "version": "v2"}, headers=cross)).status == 403
    assert await live(connection) is None
