"""Shadow over HTTP: the report, its rules, and the switch of versions; and the page that shows them."""

from typing import Any

import asyncpg
from test_http import Caller, ask, serve  # noqa: F401 - a fixture

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
