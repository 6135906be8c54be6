"""From a rule to a promotion: the report finds the mistake, promotion is refused, and the corrected version goes live."""

import asyncio
import json
import re
import shlex
import types
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from servers import SURELY_S, eventually

from notifyworker import Client, Run, RunConflict, Worker
from notifyworker.cli.app import make_app
from notifyworker.errors import InvalidRun

PAGE = Path(__file__).parents[1] / "docs" / "shadow.md"


class Pricing:
    """A kind `price.quote`: v1 is live; v2 rounds wrongly wherever n ends in 00, 33 or 66, which is in 3 % of all cases."""

    def __init__(self, worker: Worker, connection: asyncpg.Connection) -> None:
        self.worker = worker
        self.connection = connection
        self.is_wrong = True
        self.booked: list[int] = []
        self.live_by: dict[int, str | None] = {}
        worker.handler("price.quote", version="v1")(self.first)
        worker.handler("price.quote", version="v2")(self.second)

    async def first(self, run: Run, payload: dict[str, Any]) -> dict[str, Any]:
        return await self._quote(run, payload["n"], payload["n"] * 119)

    async def second(self, run: Run, payload: dict[str, Any]) -> dict[str, Any]:
        wrong = 1 if self.is_wrong and payload["n"] % 100 in {0, 33, 66} else 0
        return await self._quote(run, payload["n"], 119 * payload["n"] + wrong)

    async def _quote(self, run: Run, n: int, cents: int) -> dict[str, Any]:
        if not run.is_shadow:
            self.live_by[n] = run.version
        await run.effect("book", self.book, n, cents=cents)
        return {"cents": cents}

    async def book(self, n: int, cents: int) -> None:
        assert cents >= n
        self.booked.append(n)

    async def insert(self, first: int, last: int) -> None:
        await self.connection.execute(
            "INSERT INTO notifyworker.runs (kind, payload) SELECT 'price.quote', jsonb_build_object('n', n) FROM generate_series($1::int, $2) n",
            first, last,
        )  # fmt: skip

    async def until_compared(self, count: int, version: str = "v2") -> None:
        query = "SELECT count(*) FROM notifyworker.shadow_pairs WHERE version = $1 AND became IN ('same', 'different')"

        async def are_compared() -> bool:
            return await self.connection.fetchval(query, version) >= count

        await eventually(are_compared, 60 + count / 20)


@pytest.fixture
def pricing(make_worker, connection) -> Pricing:
    return Pricing(make_worker(concurrency=100), connection)


async def the_whole_way(pricing: Pricing, client: Client, count: int) -> None:
    """What the issue asks for, with so many runs."""
    wrong = sum(n % 100 in {0, 33, 66} for n in range(1, count + 1))
    await client.mirror("price.quote", "v2", 100)
    await eventually(lambda: pricing.worker._conductor.mirrors.any_rules)
    await pricing.insert(1, count)
    await pricing.until_compared(count)

    (report,) = await client.shadow_report(kind="price.quote")
    assert (report["compared"], report["different"], report["capped"], report["gone"]) == (count, wrong, 0, 0)
    assert report["ways"] == {"outcome": 0, "failure": 0, "result": wrong, "effects": wrong}
    assert report["agreement_low"] < report["agreement"] == 1 - wrong / count < report["agreement_high"] < 0.99
    assert re.search(r"result.cents: \d+ -> \d+\n?", report["differing"][0]["diff"])
    sample = pricing.worker._conductor.metrics.registry.get_sample_value
    expected = {"same": count - wrong, "result": wrong, "effects": wrong, "failure": None}
    await eventually(
        lambda: (
            {f: sample("notifyworker_shadow_compared_total", {"kind": "price.quote", "found": f}) for f in expected} == expected
        )
    )
    with pytest.raises(RunConflict, match=f"97 % of {count:,} runs agree, and 99 % are wanted"):
        await client.promote("price.quote", "v2")

    pricing.is_wrong = False  # deployed anew
    assert await client.reset_shadow("price.quote", "v2") == count
    await client.replay_in_shadow("price.quote", "v2", at_most=200)
    await pricing.until_compared(200)
    (report,) = await client.shadow_report(kind="price.quote")
    assert (report["compared"], report["agreement"]) == (200, 1.0)

    inserting = asyncio.create_task(pricing.insert(count + 1, 2 * count))  # under load
    done = await client.promote("price.quote", "v2", actor="the test")
    assert (done["was"], done["version"]) == ("v1", "v2")
    await inserting
    await eventually(lambda: len(pricing.live_by) >= 2 * count, 60)
    await pricing.insert(2 * count + 1, 2 * count + 50)  # after the switch
    await eventually(lambda: len(pricing.live_by) == 2 * count + 50, 60)
    assert {pricing.live_by[n] for n in range(1, count + 1)} == {"v1"}
    assert {pricing.live_by[n] for n in range(2 * count + 1, 2 * count + 51)} == {"v2"}
    assert sorted(pricing.booked) == list(range(1, 2 * count + 51))  # each once: no copy has ever booked anything
    audit = await pricing.connection.fetchrow("SELECT * FROM notifyworker.audit")
    assert (audit["actor"], audit["outcome"]) == ("the test", "200 compared, 100 % the same")


async def test_a_mistake_is_found_refused_corrected_and_promoted(pricing, dsn):
    async with pricing.worker, Client(dsn) as client:
        await the_whole_way(pricing, client, 1000)


@pytest.mark.slow
async def test_the_same_with_ten_thousand(pricing, dsn):
    async with pricing.worker, Client(dsn) as client:
        await the_whole_way(pricing, client, 10_000)


async def test_a_version_that_nobody_has_is_not_promoted_and_too_few_runs_are_told(pricing, dsn):
    async with pricing.worker, Client(dsn) as client:
        with pytest.raises(RunConflict, match="only 0 runs were compared, and 100 are wanted"):
            await client.promote("price.quote", "v2")
        await client.promote("price.quote", "v2", force=True)
        assert [(row["version"], row["workers"]) for row in await client.versions()] == [("v2", 1)]
        await pricing.insert(1, 1)
        await eventually(lambda: pricing.live_by == {1: "v2"})


async def test_an_effect_keeps_what_is_asked_for_and_no_more(make_worker, connection):
    worker = make_worker()

    async def charge(card: str, amount: int, note: str = "") -> None:
        pass

    @worker.handler("k", version="v1")
    async def handle(run: Run) -> None:
        await run.effect("names", charge, "4111", 5, note="x", redact=["card"])
        await run.effect("function", charge, "4111", 5, redact=lambda card, amount: {"amount": amount})
        await run.effect("fails", charge, "4111", 5, redact=lambda card: card)
        await run.effect("large", charge, "y" * 9000, 5)
        for _ in range(1000):
            await run.effect("many", charge, "4111", 5)

    await connection.execute("SELECT notifyworker.set_mirror('k', 'v9', 100)")
    async with worker:
        await eventually(lambda: worker._conductor.mirrors.any_rules)
        await connection.execute("INSERT INTO notifyworker.runs (kind) VALUES ('k')")

        async def effects() -> Any:
            return await connection.fetchval("SELECT effects FROM notifyworker.run_history")

        await eventually(effects)
        names, function, fails, large, *many = json.loads(await effects())
    assert names == {"name": "names", "args": ["***", 5], "kwargs": {"note": "x"}}
    assert function == {"name": "function", "args": [{"amount": 5}], "kwargs": {}}
    assert fails == {"name": "fails", "args": ["*** redact raised TypeError"], "kwargs": {}}
    assert (large["name"], large["bytes"] > 9000, len(large["sha256"])) == ("large", True, 64)
    assert (len(many), many[-1]) == (997, {"name": "...", "more": 4})


async def test_a_copy_gets_what_its_live_runs_steps_have_returned(make_worker, connection):
    worker = make_worker()
    called: list[Any] = []

    async def rate(who: str) -> int:
        called.append(who)
        return 7

    async def handle(run: Run) -> Any:
        return [
            await run.step("rate", rate, run.version),
            await run.step("only v2", rate, "v2", shadow_result=0) if run.version == "v2" else 0,
            await run.step("harmless", rate, "call", in_shadow="call"),
        ]

    worker.handler("k", version="v1")(handle)
    worker.handler("k", version="v2")(handle)
    await connection.execute("SELECT notifyworker.set_mirror('k', 'v2', 100)")
    async with worker:
        await eventually(lambda: worker._conductor.mirrors.any_rules)
        await connection.execute("INSERT INTO notifyworker.runs (kind) VALUES ('k')")

        async def pair() -> Any:
            return await connection.fetchrow("SELECT * FROM notifyworker.shadow_pairs WHERE became IS NOT NULL")

        await eventually(pair)
        (await pair())["diff"].index("effects.0: (nothing) ->")  # the step that the live run has not
    assert sorted(called) == ["call", "call", "v1"]


async def test_copies_survive_that_their_worker_is_gone(make_worker, connection):
    """A copy whose worker was killed is executed by another, once more and still without effects."""
    worker = make_worker()
    worker.handler("k", version="v1")(_nothing)
    worker.handler("k", version="v2")(_nothing)
    await connection.execute("SELECT notifyworker.set_mirror('k', 'v2', 100)")
    live = make_worker(shadow_share=0)
    live.handler("k", version="v1")(_nothing)
    async with live:
        await connection.execute("INSERT INTO notifyworker.runs (kind) SELECT 'k' FROM generate_series(1, 5)")

        async def chosen() -> bool:
            return await connection.fetchval("SELECT count(*) FROM notifyworker.shadow_pairs") == 5

        await eventually(chosen)
    claim = "SELECT count(*) FROM notifyworker.claim_shadow('{k}', '{v2}', '{3}', '{null}', null, 3, 'dead', 60)"
    assert await connection.fetchval(claim) == 3
    assert (
        await connection.fetchval("SELECT count(*) FROM notifyworker.runs WHERE waits_for = 'shadow' AND state = 'running'") == 3
    )
    await connection.execute("UPDATE notifyworker.runs SET lease_expires_at = now() - interval '1 s'")
    async with worker:

        async def compared() -> bool:
            return await connection.fetchval("SELECT count(*) FROM notifyworker.shadow_pairs WHERE became = 'same'") == 5

        await eventually(compared)
    copies = await connection.fetch("SELECT attempt, shadow_by, state FROM notifyworker.run_history WHERE is_shadow")
    assert sorted(copy["attempt"] for copy in copies) == [1, 1, 2, 2, 2]
    assert {(copy["shadow_by"], copy["state"]) for copy in copies} == {("mirror", "completed")}


async def _nothing(run: Run) -> None:
    assert run.log is not None


async def test_the_command_line(pricing, dsn, capsys):
    async def says(*arguments: str) -> str:
        return await _said(capsys, "shadow", *arguments, "--dsn", dsn)

    async with pricing.worker:
        assert "0 of 500" in await says("mirror", "price.quote", "v2", "--per-hour", "500")
        await eventually(lambda: pricing.worker._conductor.mirrors.any_rules)
        await pricing.insert(1, 40)
        await pricing.until_compared(40)
        told = await says("report")
        assert "price.quote v2, beside v1" in told
        assert "97.50% of 40 the same (95 %: 87.12% to 99.56%)" in told
        assert "result.cents: 3927 -> 3928" in told
        with pytest.raises(RunConflict, match="only 40 runs were compared"):
            await says("promote", "price.quote", "v2")
        paths = "--tolerance", "result.cents=1", "--ignore", "effects.0.kwargs.cents"
        await says("compare", "price.quote", *paths)

        async def all_same() -> bool:
            query = "SELECT count(*) FROM notifyworker.shadow_pairs WHERE became = 'same'"
            return await pricing.connection.fetchval(query) == 40

        await eventually(all_same)
        assert "v2 is live, v1 was; 40 compared, 100 % the same" in await says("promote", "price.quote", "v2", "--runs", "40")
        assert "v1 is live, v2 was; back" in await says("back", "price.quote")
        replayed = await says("replay", "--kind", "price.quote", "--version", "v2", "--since", "1h")
        assert "0 runs of price.quote are chosen for v2; 40 were before" in replayed


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["replay", "--kind", "k", "--version", "v2"], "until"),
        (["replay", "--kind", "k", "--version", "v2"], "since"),
        (["report"], "since"),
        (["promote", "k", "v2"], "since"),
    ],
)
async def test_a_time_that_can_not_be_read_is_named_as_it_was_given(command, name, dsn):
    with pytest.raises(InvalidRun, match=f"^{name}: "):
        await make_app().run_async(["shadow", *command, f"--{name}", "bad", "--dsn", dsn])


async def test_the_pages_examples(dsn, connection, monkeypatch, capsys):
    monkeypatch.setenv("NOTIFYWORKER_DSN", dsn)
    text = PAGE.read_text()
    app, client_of = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    first, second = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (sql,) = re.findall(r"^```sql\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    page = types.ModuleType("shadow_page")
    exec(compile(app, str(PAGE), "exec"), page.__dict__)
    async with page.worker:
        for line in first.splitlines():
            await _said(capsys, *shlex.split(line)[1:], "--dsn", dsn)
            await eventually(lambda: page.worker._conductor.mirrors.any_rules)  # or the first has no recorded effects

        async def compared() -> bool:
            return await connection.fetchval("SELECT count(*) FROM notifyworker.shadow_pairs WHERE became IS NOT NULL") == 2

        await eventually(compared)
        said = (await _said(capsys, "shadow", "report", "--dsn", dsn)).splitlines()
        expected = [line[4:] for line in text.partition("The report says:\n\n")[2].partition("\n\n")[0].splitlines()]
        assert [re.sub(r"[0-9a-f-]{36}", "01a20e3b-...", line) for line in said] == expected
        for line in second.splitlines():
            await _said(capsys, *shlex.split(line)[1:], "--dsn", dsn)
        assert await connection.fetchval("SELECT version FROM notifyworker.versions") == "v1"
        for statement in sql.strip().split(";\n"):
            await connection.execute(statement)
        exec(compile(client_of, str(PAGE), "exec"), page.__dict__)
        await asyncio.wait_for(page.main(), SURELY_S)


async def _said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    await make_app().run_async(list(arguments))
    return capsys.readouterr().out
