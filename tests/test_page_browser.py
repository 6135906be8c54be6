"""The page in a real browser: Debian's Chromium, driven by Playwright. Skipped, with a line that says so, where there is none."""

import asyncio
import contextlib
import json
import re
import shutil
from collections.abc import AsyncIterator
from importlib import resources
from typing import Any

import pytest
from servers import SURELY_S, eventually, free_port

from notifyworker import Fail, Run, Worker

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.async_api", reason="the browser's tests need playwright: make installs it")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the browser's tests need Chromium: apt-get install chromium")


@pytest.fixture
async def browser() -> AsyncIterator[Any]:
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        await browser.close()


_SEEN = "`${document.querySelector('#live')?.innerText} | ${document.title} | ${document.activeElement?.outerHTML.slice(0, 200)}`"


@contextlib.asynccontextmanager
async def looked_at(browser: Any, url: str, **options: Any) -> AsyncIterator[Any]:
    """A tab that fails the test for anything that its console tells."""
    context = await browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce", **options)
    page = await context.new_page()
    page.set_default_timeout(1000 * SURELY_S)
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("dialog", lambda dialog: told.append(f"dialog: {dialog.message}"))
    page.told = told
    await page.goto(url)
    try:
        yield page
    except playwright.TimeoutError as error:
        error.add_note(f"{page.url}: {await page.evaluate(_SEEN)}; the console: {told}")
        raise
    assert [line for line in told if "net::ERR" not in line and "Failed to load resource" not in line] == []
    await context.close()


@pytest.fixture
def make_house(make_worker: Any) -> Any:
    def make(**settings: Any) -> Worker:
        worker: Worker = make_worker(sidecar=True, **{"port": 0, **settings})

        @worker.handler("fine")
        async def fine(run: Run, payload: Any) -> Any:
            return payload

        @worker.handler("fail")
        async def fail(run: Run) -> None:
            raise Fail("<img src=x onerror=alert(1)>")

        @worker.handler("held")
        async def held(run: Run) -> None:
            await run.progress({"step": "<script>alert(3)</script>"})
            await asyncio.sleep(3600)

        return worker

    return make


async def insert(connection: Any, kind: str, payload: Any = None, **columns: Any) -> str:
    names = ["kind", "payload", *columns]
    marks = ", ".join(f"${number}" for number in range(1, len(names) + 1))
    statement = f"INSERT INTO notifyworker.runs ({', '.join(names)}) VALUES ({marks}) RETURNING run_id"
    return str(await connection.fetchval(statement, kind, json.dumps(payload or {}), *columns.values()))


async def state(connection: Any, run_id: str) -> str:
    return await connection.fetchval("SELECT state FROM notifyworker.all_runs WHERE run_id = $1", run_id)


async def text(page: Any, selector: str = "main") -> str:
    return re.sub(r"\s+", " ", await page.inner_text(selector))


async def shows(page: Any, wanted: str, selector: str = "main") -> None:
    await page.wait_for_function("([s, t]) => document.querySelector(s)?.innerText.includes(t)", arg=[selector, wanted])


async def test_an_operator_cancels_retries_and_pauses(make_house, connection, browser) -> None:
    async with make_house() as worker:
        held = await insert(connection, "held")
        waiting = [await insert(connection, "nobody", {"n": n}) for n in range(4)]
        await eventually(lambda: _is(connection, held, "running"))
        async with looked_at(browser, f"{worker.url}/runs?state=pending") as page:
            await page.check(f"#c-{waiting[3]}")
            await page.click(f"#c-{waiting[1]}", modifiers=["Shift"])
            assert "3 selected" in await text(page, "#bulk")
            await page.click("[data-do=cancel]")
            await shows(page, "Cancel 3 runs?", "#ask")
            assert "not undone" in await text(page, "#ask")
            await page.click("#ask [data-dismiss]")
            assert [await state(connection, run) for run in waiting] == ["pending"] * 4
            await page.click("[data-do=cancel]")
            await page.click("#ask button[type=submit]")
            await shows(page, "Cancel: 3 of 3 done")
            assert [await state(connection, run) for run in waiting] == ["pending", "cancelled", "cancelled", "cancelled"]
            assert "done=" not in page.url  # a reload does not tell it again

            await page.goto(f"{worker.url}/runs/{held}")
            assert re.search(r"^\d:\d\d$", await page.inner_text("[data-lease]"))
            await page.click("main button:has-text('Cancel')")
            await page.click("#ask button[type=submit]")
            await shows(page, "cancelled", "h1 + .lede")
            await page.click("main button:text-is('Retry')")
            await page.click("#ask button[type=submit]")
            await eventually(lambda: _is(connection, held, "running"))

            await page.goto(f"{worker.url}/pauses")
            await page.fill("#kind", "fine")
            await page.click("#new-pause button")
            await page.select_option("#ask select", "3600")
            await page.fill("#ask input[name=reason]", "it is down")
            await page.click("#ask button[type=submit]")
            await shows(page, "it is down")
            await page.click("main td button:has-text('Resume')")
            await page.click("#ask button[type=submit]")
            await shows(page, "Nothing is paused")
        await connection.execute("SELECT notifyworker.cancel($1)", held)
    actions = await connection.fetch("SELECT action, changed FROM notifyworker.audit ORDER BY audit_id")
    assert [tuple(row) for row in actions] == [("cancel", 3), ("cancel", 1), ("retry", 1), ("pause", 1), ("resume", 1)]


async def _is(connection: Any, run_id: str, wanted: str) -> bool:
    return await state(connection, run_id) == wanted


async def test_it_is_alive_and_holds_still_under_the_hand(make_house, connection, browser) -> None:
    async with make_house() as worker:
        first = await insert(connection, "nobody")
        async with looked_at(browser, f"{worker.url}/runs") as page, looked_at(browser, f"{worker.url}/runs") as other:
            await page.check(f"#c-{first}")
            second = await insert(connection, "fine")
            await other.wait_for_selector(f"#r-{second}")  # without a click, in the other tab
            assert await page.query_selector(f"#r-{second}") is None  # a selection is not pulled away
            assert "Held" in await text(page, "#live")
            await page.click("[data-clear]")
            await page.wait_for_selector(f"#r-{second}")
            await page.keyboard.press("p")
            assert "Paused" in await text(page, "#live")
            await page.keyboard.press("p")
            await page.click(f"#r-{second} a")
            await page.wait_for_url(f"**/runs/{second}")
            await page.go_back()
            await page.wait_for_selector(f"#r-{second}")


async def test_an_answer_that_comes_under_the_hand_waits_for_it(make_house, connection, browser) -> None:
    async with make_house() as worker:
        first = await insert(connection, "nobody")
        async with looked_at(browser, "about:blank") as page:
            asked, go_on = asyncio.Event(), asyncio.Event()

            async def slow(route: Any) -> None:
                if not route.request.is_navigation_request():
                    asked.set()
                    await go_on.wait()
                await route.continue_()

            await page.route("**/runs", slow)
            await page.goto(f"{worker.url}/runs")
            await asyncio.wait_for(asked.wait(), SURELY_S)
            await page.check(f"#c-{first}")
            second = await insert(connection, "nobody")
            async with page.expect_request_finished(lambda request: request.url.endswith("/runs")):
                go_on.set()
            await shows(page, "Held", "#live")
            assert await page.query_selector(f"#r-{second}") is None
            await page.click("[data-clear]")
            await page.wait_for_selector(f"#r-{second}")


async def test_it_is_alive_whenever_its_scripts_come(make_house, connection, browser) -> None:
    async with make_house() as worker, looked_at(browser, "about:blank") as page:
        loaded = await page.request.get(f"{worker.url}/runs", headers={"Accept": "text/html"})
        last = re.findall(r'<script src="([^"]+)"', await loaded.text())[-1]

        async def late(route: Any) -> None:
            await page.wait_for_function("document.readyState === 'interactive'")
            await page.evaluate("new Promise(done => setTimeout(done, 200))")  # all timers of the scripts before
            await route.continue_()

        await page.route(f"**{last}", late)
        await page.goto(f"{worker.url}/runs")
        run = await insert(connection, "nobody")
        await page.wait_for_selector(f"#r-{run}")


async def test_a_stream_that_did_not_begin_is_asked_for_again(make_house, connection, browser) -> None:
    async with make_house() as worker, looked_at(browser, "about:blank") as page:
        await page.route("**/live", lambda route: route.abort(), times=2)
        await page.goto(f"{worker.url}/runs")
        await shows(page, "Reconnecting", "#live")
        run = await insert(connection, "nobody")
        await page.wait_for_selector(f"#r-{run}")
        await shows(page, "Live", "#live")
        page.told.clear()  # of the two that were refused


async def test_it_comes_back_with_its_sidecar(make_house, connection, browser) -> None:
    port = free_port()
    async with looked_at_later(browser) as look:
        async with make_house(port=port) as worker:
            page = await look(f"{worker.url}/runs")
        await shows(page, "Reconnecting", "#live")
        async with make_house(port=port):
            run = await insert(connection, "fine")
            await page.wait_for_selector(f"#r-{run}", timeout=40_000)


@contextlib.asynccontextmanager
async def looked_at_later(browser: Any) -> AsyncIterator[Any]:
    context = await browser.new_context()

    async def look(url: str) -> Any:
        page = await context.new_page()
        await page.goto(url)
        await page.wait_for_function("document.querySelector('#live') && !document.querySelector('#live').hidden")
        return page

    yield look
    await context.close()


async def test_the_way_in_and_what_a_viewer_may(make_house, connection, browser) -> None:
    async with make_house(tokens="anna:operator:s3cret-anna,wall:viewer:s3cret-wall") as worker:
        await insert(connection, "nobody")
        async with looked_at(browser, f"{worker.url}/runs?state=pending") as page:
            await page.fill("#token", "nonsense")
            async with page.expect_navigation():
                await page.keyboard.press("Enter")
            await shows(page, "This token is not known here")
            await page.goto(f"{worker.url}/runs?state=pending")
            await page.fill("#token", "s3cret-wall")
            await page.keyboard.press("Enter")
            await page.wait_for_url("**/runs?state=pending")
            assert await page.query_selector("tbody input") is None
            assert "wall, read only" in await text(page, "#sys")
            await page.click("text=Sign out")
            await page.fill("#token", "s3cret-anna")
            async with page.expect_navigation():
                await page.keyboard.press("Enter")
            await page.goto(f"{worker.url}/runs?state=pending")
            assert await page.query_selector("tbody input") is not None


async def test_keys_filters_and_nothing_that_runs(make_house, connection, browser) -> None:
    nasty = "\"'><img src=x onerror=alert(1)><script>alert(2)</script>"
    async with make_house() as worker:
        await insert(connection, "fail", {nasty: nasty})
        run = await insert(connection, nasty, {nasty: nasty}, project_id=nasty)
        held = await insert(connection, "held", project_id=nasty)
        await eventually(lambda: _is(connection, held, "running"))
        async with looked_at(browser, worker.url + "/") as page:
            await shows(page, "Nobody executes")
            for key, path in (
                ("w", "/workers"),
                ("s", "/schedules"),
                ("e", "/reaper"),
                ("y", "/system"),
                ("a", "/audit"),
                ("h", "/shadow"),
                ("r", "/runs"),
            ):
                await page.keyboard.press("g")
                await page.keyboard.press(key)
                await page.wait_for_url("**" + path)
            await page.keyboard.press("/")
            await page.keyboard.type("jxg")  # letters do nothing inside a field
            assert await page.input_value("#q") == "jxg"
            await page.fill("#q", nasty)
            await page.keyboard.press("Enter")
            await page.wait_for_selector(f"#r-{run}")
            assert "mode=" not in page.url
            await page.keyboard.press("j")
            await page.keyboard.press("x")
            assert "1 selected" in await text(page, "#bulk")
            await page.keyboard.press("x")
            await page.keyboard.press("Enter")
            await page.wait_for_url(f"**/runs/{run}")
            await page.goto(f"{worker.url}/runs/{held}")
            assert "<script>alert(3)" in await text(page)
            await page.keyboard.press("?")
            await page.wait_for_selector("#keys:popover-open")
            await page.keyboard.press("Escape")
            assert await page.evaluate("document.querySelectorAll('main img, main script').length") == 0
        await connection.execute("SELECT notifyworker.cancel($1)", held)


async def test_a_version_is_switched_and_back_and_nothing_that_it_shows_runs(make_worker, connection, browser) -> None:
    nasty = "\"'><img src=x onerror=alert(1)><script>alert(2)</script>"
    worker: Worker = make_worker(sidecar=True, port=0)
    called: list[str] = []

    async def book(note: str) -> None:
        called.append(note)

    async def quote(run: Run, payload: Any) -> Any:
        await run.effect(nasty, book, f"{run.version} {nasty}")
        return {nasty: f"{run.version} {nasty}"}

    for version in ("v1", nasty):
        worker.handler(nasty, version=version)(quote)
    await connection.execute("SELECT notifyworker.set_mirror($1, $1, 100)", nasty)
    async with worker:
        await eventually(lambda: worker._conductor.mirrors.any_rules)
        await insert(connection, nasty)

        async def is_compared() -> bool:
            return await connection.fetchval("SELECT count(*) FROM notifyworker.shadow_pairs WHERE became = 'different'") == 1

        async def live() -> str:
            return await connection.fetchval("SELECT version FROM notifyworker.versions")

        await eventually(is_compared)
        async with looked_at(browser, f"{worker.url}/shadow") as page:
            await shows(page, "1 difference")
            assert await page.evaluate("document.querySelectorAll('main img, main script').length") == 0
            await page.click("#agr-1 button")
            await shows(page, "only 1 runs were compared, and 100 are wanted", "#ask")
            await page.click("#ask [data-dismiss]")
            assert await live() == "v1"
            await page.click("#agr-1 button")
            await page.select_option("#ask select", "1")
            await page.click("#ask button[type=submit]")
            await shows(page, "Promote: 1 of 1 done")
            assert await live() == nasty
            await page.click("#version-1 button")
            await shows(page, "Go back to v1 of", "#ask")
            await page.click("#ask button[type=submit]")
            await shows(page, "Switch back: 1 of 1 done")
            assert await live() == "v1"
            assert await page.evaluate("document.querySelectorAll('main img, main script').length") == 0
    assert called == [f"v1 {nasty}"]


async def test_without_a_script_it_reads_and_acts(make_house, connection, browser) -> None:
    async with make_house() as worker:
        run = await insert(connection, "nobody")
        async with looked_at(browser, worker.url + "/runs", java_script_enabled=False) as page:
            await page.fill("#kind", "nobody")
            await page.click("text=Search")
            assert await page.locator("tbody tr").count() == 1
            await page.goto(f"{worker.url}/runs/{run}")
            await page.click("main button:has-text('Cancel')")
            assert "Cancel 1 run?" in await page.inner_text("main")
            await page.click("main .ask button")
            assert "Cancel: 1 of 1 done" in re.sub(r"\s+", " ", await page.inner_text("main"))
    assert await state(connection, run) == "cancelled"


@pytest.mark.timeout(300)
async def test_axe_finds_nothing(make_house, connection, browser) -> None:
    code = next(resources.files("axe_playwright_python").glob("axe.min.js")).read_text()
    async with make_house() as worker:
        run = await insert(connection, "fail")
        await eventually(lambda: _is(connection, run, "failed"))
        await connection.execute("INSERT INTO notifyworker.schedules (name, cron, kind) VALUES ('s', '* * * * *', 'fine')")
        await connection.execute("SELECT notifyworker.pause('fine')")
        await connection.execute(
            """INSERT INTO notifyworker.shadow_pairs (live_run_id, shadow_run_id, kind, project_id, version, became, ways, diff, live_state,
                   shadow_state, live_s, shadow_s)
               SELECT $1, notifyworker.uuid7(), 'fail', 'default', v, 'different', '{result,effects}', 'result: 1 -> 2', 'failed', 'completed', 1, 2
                 FROM unnest('{v2,v3}'::text[]) AS v""",
            run,
        )
        await connection.execute("SELECT notifyworker.set_mirror('fail', 'v2', 10), notifyworker.set_version('fine', 'v2')")
        paths = ["/", "/runs", f"/runs/{run}", "/workers", "/reaper", "/schedules", "/pauses", "/system", "/audit", "/shadow"]
        found = [
            fault
            for scheme, width in (("light", 1440), ("dark", 320))
            async for fault in faults(browser, [worker.url + path for path in paths], code, scheme, width)
        ]
    assert found == []


async def faults(browser: Any, urls: list[str], code: str, scheme: str, width: int) -> AsyncIterator[Any]:
    """What axe-core finds, the list of keys open; and pages that are wider than the window."""
    context = await browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}, bypass_csp=True)
    page = await context.new_page()
    for url in urls:
        await page.goto(url)
        await page.evaluate("document.querySelector('#keys').showPopover()")
        await page.evaluate(code)
        for violation in await page.evaluate(
            "axe.run().then(r => r.violations.map(v => [v.id, v.nodes.map(n => n.target.join(' '))]))"
        ):
            yield (url, scheme, width, *violation)
        if await page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            yield (url, scheme, width, "scrolls sideways")
    await context.close()
