"""Every setting with whatever somebody may write there: it is taken, or told in clear words, without a password."""

import asyncio
import contextlib
import io
import os
from typing import Any
from unittest import mock

import hypothesis
import pytest
from hypothesis import strategies as st

from notifyworker import NotifyWorkerError, SettingsError, Worker
from notifyworker.cli import main
from notifyworker.cli.options import WorkerOptions
from notifyworker.migrate import open_or_explain
from notifyworker.settings import Settings

PASSWORD = "hush4711"
NAMES = sorted("schema" if name == "schema_name" else name for name in Settings.model_fields)
SECRETS = {"dsn", "listen_dsn", "admin_dsn", "read_dsn", "token"}

characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
hosts = st.sampled_from(
    ["127.0.0.1:1", "127.0.0.1:99999", "127.0.0.1:x", "[::1]:1", "[::1", "127.0.0.1:1,127.0.0.1:2", "/no/such:1", "%00:1", "127.0.0.1:-1", "127.0.0.1:0"]
)  # fmt: skip
options = st.sampled_from(
    ["", "?", "?sslmode=nonsense", "?sslmode=verify-full", "?sslmode=verify-full&sslrootcert=/no/such", "?sslcert=/no/such", "?host=/no/such&port=1",
     "?target_session_attrs=x", "?connect_timeout=x", "?options=-c%20x", "?application_name=\u202e", "?passfile=/no/such", "?a=b", "?krbsrvname=x",
     "?ssl_min_protocol_version=x", "?port=x&host=127.0.0.1", "?direct_tls=x", f"?password={PASSWORD}&sslmode=disable", "?user=%ff"]
)  # fmt: skip
passwords = st.text(characters, max_size=3).map(lambda odd: f"{odd}{PASSWORD}{odd}")
dsns = st.one_of(
    st.builds(
        lambda scheme, user, password, host, name, more: f"{scheme}://{user}:{password}@{host}/{name}{more}",
        st.sampled_from(["postgresql", "postgres", "http", ""]), st.sampled_from(["u", "", "a%20b", "%"]), passwords, hosts,
        st.sampled_from(["db", "", "a/b", "%zz", "d b"]), options,
    ),
    passwords.map(lambda password: f"host=127.0.0.1 port=1 password={password}"),
    passwords.map(lambda password: f"postgresql://u:{password}"),
)  # fmt: skip
words = st.one_of(
    st.sampled_from(
        ["", " ", "0", "-1", "1", "1.5", "1e309", "nan", "inf", "-inf", "9" * 400, "0x10", "1_000", "true", "no", "None", "null", "[]", "{}", "a,b", ",", "tcp://1",
         "exit", "log", "json", "debug", "enforce", "pg_x", "notifyworker", "Robert'); DROP", "x" * 300, "\u0661", "\u202e", "\x1b[31m", "--help", "--", "=", "\n"]
    ),
    st.text(characters, max_size=10),
    st.floats().map(str),
    st.integers().map(str),
)  # fmt: skip
things = st.one_of(
    words, st.none(), st.booleans(), st.integers(), st.floats(), st.binary(max_size=4), st.just(object()), st.lists(words, max_size=2),
    st.dictionaries(words, words, max_size=1), st.just(b"\xff"), st.just("\ud800"), st.just("a\0b"), st.just(10**400),
)  # fmt: skip


def of(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """One to three settings; where a secret belongs, one that must not be shown."""
    chosen = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)
    return chosen.flatmap(
        lambda names: st.fixed_dictionaries(
            {n: (dsns if n.endswith("dsn") else passwords if n == "token" else values) for n in names}
        )
    )


def fuzz(examples: int) -> hypothesis.settings:
    health = list(hypothesis.HealthCheck)
    return hypothesis.settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=health
    )


@fuzz(250)
@hypothesis.given(of(things))
def test_keywords(given):
    try:
        Worker(**given)
    except SettingsError as error:
        told = str(error)
        assert any(name in told for name in given), (given, told)
        assert PASSWORD not in told


@fuzz(250)
@hypothesis.given(of(words))
def test_environment(given):
    with mock.patch.dict(os.environ, {f"NOTIFYWORKER_{name.upper()}": value for name, value in given.items()}):
        try:
            Settings.load()
        except SettingsError as error:
            assert any(name in str(error) for name in given), (given, error)
            assert PASSWORD not in str(error)


APP = "faulty_app:worker"


@fuzz(120)
@hypothesis.given(
    of(words), st.lists(words | st.sampled_from(["--dsn", "--no-such", "--json", "--no-sidecar", "-x"]), max_size=2)
)
def test_command_line(given, stray):
    """As far as the start: that a worker then starts, or can't, is shown elsewhere."""
    fields = {field: f"--{field.replace('_', '-')}" for field in WorkerOptions.__dataclass_fields__}
    tokens = [token for name, value in given.items() if name in fields for token in (fields[name], value)]
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch("notifyworker.cli.worker.executed", lambda _found, work: work.close() or 0),
        contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended,
    ):  # fmt: skip
        main(["worker", APP, *tokens, *stray])
    assert ended.value.code in {0, 2}, (tokens, stray)
    assert PASSWORD not in out.getvalue() + err.getvalue(), (tokens, stray)
    assert "Traceback" not in err.getvalue()
    assert (ended.value.code == 2) == err.getvalue().startswith("error: "), (tokens, err.getvalue())


@fuzz(150)
@hypothesis.given(dsns)
def test_connecting(dsn):
    async def connecting() -> None:
        with pytest.raises(NotifyWorkerError) as refused:
            await open_or_explain(dsn, "notifyworker")
        assert PASSWORD not in str(refused.value)
        assert len(str(refused.value)) < 500

    asyncio.run(connecting())
