"""The sidecar against those who may not come in: guessed tokens, other sites' pages, markup in payloads, and TLS."""

import asyncio
import hmac
import re
import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
from test_cli import APP, call
from test_http import TOKEN, Answer, Caller, Watched, serve

from notifyworker.errors import SettingsError
from notifyworker.http import guesses
from notifyworker.http.auth import COOKIE
from notifyworker.http.sidecar import Sidecar
from notifyworker.settings import Settings

RIGHT = {"Authorization": f"Bearer {TOKEN}"}


async def guess(ask: Caller, token: str) -> Answer:
    return await ask.get("/runs", headers={"Authorization": f"Bearer {token}"})


# Tokens


async def test_tokens_can_not_be_guessed_one_after_the_other(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guesses, "REFILL_S", 3600.0)
    async with serve(dsn, token=TOKEN) as ask:
        login = await ask.post("/login", json={"token": TOKEN})
        session = {"Cookie": f"{COOKIE}={login.headers['Set-Cookie'].partition('=')[2].partition(';')[0]}"}
        ask.session.cookie_jar.clear()
        for number in range(guesses.BURST):
            assert (await guess(ask, f"wrong-{number}")).status == 401
        refusal = await guess(ask, "wrong-again")
        assert (refusal.status, refusal.json["title"]) == (429, "Too Many Requests")
        assert int(refusal.headers["Retry-After"]) > 60

        # Nothing tells the right one from the others, by whichever way it is tried.
        assert (await guess(ask, TOKEN)).status == 429
        assert (await ask.post("/login", json={"token": TOKEN})).status == 429
        assert (await ask.post("/login", data={"token": TOKEN})).status == 429
        cross_site = {**RIGHT, "Sec-Fetch-Site": "cross-site"}
        assert (await ask.post("/runs", json={"kind": "k"}, headers=cross_site)).status == 429
        assert (await ask.post("/login", json={"token": "x"}, headers=cross_site)).status == 403
        # Who has no token yet, who is in already, and probes are not concerned.
        assert (await ask.get("/runs")).status == 401
        assert (await ask.get("/runs", headers=session)).status == 200
        assert (await ask.get("/healthz", headers=RIGHT)).status == 200


async def test_an_address_may_try_again_after_a_while(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guesses, "REFILL_S", 0.05)
    async with serve(dsn, token=TOKEN) as ask:
        for number in range(100):
            if (await guess(ask, f"wrong-{number}")).status == 429:
                break
        async with asyncio.timeout(30):
            while (await guess(ask, TOKEN)).status != 200:
                pass


async def test_a_client_with_an_old_token_locks_nobody_out(dsn: str) -> None:
    async with serve(dsn, token=TOKEN) as ask:
        for _ in range(3 * guesses.BURST):
            assert (await guess(ask, "the token of last year")).status == 401
        assert (await guess(ask, TOKEN)).status == 200


async def test_guesses_are_counted_by_address_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guesses, "ADDRESSES", 50)
    counted = guesses.Guesses()

    def exhaust(remote: str) -> None:
        for number in range(guesses.BURST):
            counted.check(remote, b"%d" % number)
            counted.failed(remote, b"%d" % number)

    exhaust("2001:db8::1")
    for same in ("2001:db8::1", "2001:db8::ffff:2"):  # one host has all of the last 64 bits
        with pytest.raises(guesses.Problem):
            counted.check(same, b"x")
    for other in ("2001:db8:0:1::1", "10.0.0.1", "", None, "@"):
        counted.check(other, b"x")
    exhaust("10.0.0.1")
    with pytest.raises(guesses.Problem):
        counted.check("::ffff:10.0.0.1", b"x")  # as a dual-stack socket names it
    for number in range(1000):
        counted.failed(f"10.1.{number // 250}.{number % 250}", b"x" * 100_000)
    assert len(counted._addresses) == 50
    assert all(len(digest) == 16 for known in counted._addresses.values() for digest in known.wrong)


async def test_tokens_are_compared_in_constant_time_and_whole(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[Any] = []
    digest = hmac.compare_digest

    def compare(given: bytes, kept: bytes) -> bool:
        compared.append(given)
        return digest(given, kept)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    near = TOKEN[:-1] + "x"
    async with serve(dsn, token=TOKEN) as ask:
        await guess(ask, near)
        await ask.post("/login", json={"token": near})
        await ask.get("/runs", headers={"Cookie": f"{COOKIE}=0123"})

    assert compared.count(near.encode()) == 2
    assert b"0123" in compared


# Other sites and markup


async def test_no_answer_lets_another_site_read_it(dsn: str) -> None:
    async with serve(dsn) as ask:
        for origin in ("https://evil.example", "null", ask.sidecar.url):
            headers = {
                "Origin": origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization",
            }
            for method, path in (
                ("OPTIONS", "/runs"),
                ("OPTIONS", "/absent"),
                ("GET", "/runs"),
                ("GET", "/metrics"),
                ("GET", "/"),
            ):
                answer = await ask(method, path, headers=headers)
                assert [name for name in answer.headers if name.lower().startswith("access-control")] == [], (method, path)
                assert answer.status != 204
        assert (await ask("OPTIONS", "/runs", headers={"Origin": "https://evil.example"})).status in {403, 405}


async def test_no_form_of_another_site_can_post(dsn: str) -> None:
    """What a page can send without being asked first: three types of content, and no header of its own."""
    async with serve(dsn) as ask:
        for content in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
            headers = {"Content-Type": content, "Origin": "https://evil.example"}
            await ask.refusal("POST", "/runs", 403, None, data='{"kind": "k"}', headers=headers)
        assert (await ask.get("/runs")).json["runs"] == []


MARKUP = '</script><script>alert("1")</script><img src=x onerror=alert(1)>'


async def test_markup_in_a_payload_stays_text(dsn: str) -> None:
    async with serve(dsn) as ask:
        ask.worker.lease_owner = MARKUP
        ask.worker.reasons = [MARKUP]
        run_id = await ask.insert(kind=MARKUP, payload={MARKUP: MARKUP}, project_id=MARKUP)
        for path in ("/runs", f"/runs/{run_id}", f"/runs?kind={'x' * 201}", "/runs/" + "<script>", "/healthz"):
            answer = await ask.get(path)
            assert answer.headers["Content-Type"].partition(";")[0] in {"application/json", "application/problem+json"}
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert (await ask.get(f"/runs/{run_id}")).json["payload"] == {MARKUP: MARKUP}
        page = await ask.get("/", headers={"Accept": "text/html"})
        assert "<img" not in page.text
        assert not re.search(r"<script(?![^>]*\ssrc=)", page.text)  # the page's own come from files
        assert MARKUP not in page.text
        policy = page.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe-inline" not in policy
        assert "script-src 'self'" in policy


# Limits of a request


async def test_a_request_has_bounded_parts(dsn: str) -> None:
    async with serve(dsn) as ask:
        start = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        assert (await ask.raw(start + b"\r\n")).status == 200
        too_much = [
            start + b"X: " + b"x" * 9000 + b"\r\n\r\n",
            start + b"X" * 9000 + b": x\r\n\r\n",
            start + b"".join(b"X%d: x\r\n" % n for n in range(3000)) + b"\r\n",
            b"GET /runs?kind=" + b"x" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        ]
        for data in too_much:
            assert (await ask.raw(data)).status == 400, data[:100]
        assert (
            await ask.raw(b"GET /runs?" + b"a&" * 3900 + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        ).status == 400
        for limit in ("0", "501", "1e9"):
            await ask.refusal("GET", f"/runs?limit={limit}", 400, "limit")


# TLS

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


def certificate(folder: Path, name: str, *options: str) -> tuple[Path, Path]:
    """A certificate for localhost that signed itself, and its key."""
    files = folder / f"{name}.crt", folder / f"{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-days", "2", "-subj", f"/CN={name}",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-out", str(files[0]), "-keyout", str(files[1]), *options],
        check=True, capture_output=True,
    )  # fmt: skip
    return files


@needs_openssl
async def test_the_sidecar_serves_https_by_the_users_certificate(dsn: str, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "ours", "-nodes")
    trusting = ssl.create_default_context(cafile=str(cert))
    async with serve(dsn, token=TOKEN, tls_cert=str(cert), tls_key=key) as ask:
        assert ask.sidecar.url == f"https://127.0.0.1:{ask.port}"
        assert (await ask.get("/livez", ssl=trusting)).status == 200
        assert (await ask.get("/runs", ssl=trusting)).status == 401
        assert (await ask.get("/runs", ssl=trusting, headers=RIGHT)).status == 200
        cookie = (await ask.post("/login", ssl=trusting, json={"token": TOKEN})).headers["Set-Cookie"]
        assert "Secure" in cookie
        with pytest.raises(ssl.SSLCertVerificationError):  # who does not trust it is not served in clear
            await asyncio.open_connection("127.0.0.1", ask.port, ssl=ssl.create_default_context())
        reader, writer = await asyncio.open_connection("127.0.0.1", ask.port)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(30):
            assert b"HTTP/" not in await reader.read()
        writer.close()
        old = ssl.create_default_context(cafile=str(cert))
        old.set_ciphers("DEFAULT:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning):
            old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", ask.port, ssl=old)


@needs_openssl
async def test_a_handshake_that_does_not_come_is_ended(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("notifyworker.http.sidecar.HANDSHAKE_S", 0.2)
    cert, key = certificate(tmp_path, "ours", "-nodes")
    async with serve(dsn, tls_cert=cert, tls_key=key) as ask:
        reader, writer = await asyncio.open_connection("127.0.0.1", ask.port)
        async with asyncio.timeout(30):
            assert await reader.read() == b""
        writer.close()


@needs_openssl
async def test_a_certificate_that_can_not_be_used_is_told_at_start(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "ours", "-nodes")
    _, others = certificate(tmp_path, "others", "-nodes")
    _, locked = certificate(tmp_path, "locked", "-passout", "pass:geheim")
    (tmp_path / "no.pem").write_text("no PEM")
    absent = tmp_path / "absent.pem"
    for files, told in (
        ((absent, key), rf"tls_cert: {absent} can't be read: No such file"),
        ((cert, absent), rf"tls_key: {absent} can't be read: No such file"),
        ((cert, tmp_path), rf"tls_key: {tmp_path} can't be read: Is a directory"),
        ((cert, others), rf"tls_key: {others} is not the key of the certificate in {cert}"),
        ((cert, locked), r"tls_key: the key is encrypted"),
        ((tmp_path / "no.pem", key), r"tls_cert, tls_key: .* can't be used"),
        ((cert, cert), r"tls_cert, tls_key: .* can't be used"),
    ):
        worker = Watched(Settings.load(keywords={"port": 0, "tls_cert": files[0], "tls_key": files[1]}), "postgresql://")
        with pytest.raises(SettingsError, match=told):
            await Sidecar(worker).start()
    for one, other in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        with pytest.raises(SettingsError, match=f"{other}: is missing, and {one} is given"):
            Settings.load(keywords={one: cert})


async def test_the_command_refuses_a_certificate_that_is_not_there(dsn: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    arguments = ("worker", "app:worker", "--port", "0", "--tls-cert", "/absent.crt", "--tls-key", "/absent.key")
    done = await call(*arguments, cwd=tmp_path, env={"NOTIFYWORKER_DSN": dsn})
    assert done.code == 2
    assert done.err.splitlines()[-1] == "error: tls_cert: /absent.crt can't be read: No such file or directory"


def test_by_default_nobody_else_can_connect() -> None:
    assert Settings.load().host == "127.0.0.1"
    assert socket.inet_aton(Settings.load().host)[0] == 127
