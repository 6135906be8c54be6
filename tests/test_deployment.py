"""deploy/: a service of systemd's hears what it must, and its files and Kubernetes' agree with what a worker is."""

import asyncio
import contextlib
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder
from servers import STARTED_S, eventually
from test_cli import APP, start
from test_observability import measured

from notifyworker import Run, Worker
from notifyworker.cli.examples import EXAMPLES
from notifyworker.http.auth import OPEN
from notifyworker.settings import Settings

ROOT = Path(__file__).parents[1]
UNIT = (ROOT / "deploy" / "systemd" / "notifyworker@.service").read_text()
KUBERNETES = ROOT / "deploy" / "kubernetes"
MANIFESTS: dict[str, dict[str, Any]] = {
    manifest["kind"]: manifest
    for file in ("migrate", "worker", "cluster", "scaling", "kustomization")
    for manifest in yaml.safe_load_all((KUBERNETES / f"{file}.yaml").read_text())
}
LEFT_S = 5  # for the rest of a shutdown, beyond the drain


# systemd.


@contextlib.contextmanager
def notify_socket(address: str) -> Any:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind("\0" + address[1:] if address.startswith("@") else address)
        heard.setblocking(False)
        yield heard


async def said(heard: socket.socket) -> str:
    async with asyncio.timeout(STARTED_S):
        return (await asyncio.get_running_loop().sock_recv(heard, 4096)).decode()


@contextlib.asynccontextmanager
async def service(folder: Path, dsn: str, **env: str) -> AsyncIterator[asyncio.subprocess.Process]:
    (folder / "app.py").write_text(APP)
    process = await start("worker", "app:worker", "--no-sidecar", cwd=folder, env={"NOTIFYWORKER_DSN": dsn, **env})
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("is_abstract", [False, True])
async def test_a_service_is_ready_beats_and_stops(
    dsn: str, connection: asyncpg.Connection, tmp_path: Path, is_abstract: bool
) -> None:
    address = f"@notifyworker-{tmp_path.name}-{id(tmp_path)}" if is_abstract else str(tmp_path / "notify")
    with notify_socket(address) as heard:
        async with service(tmp_path, dsn, NOTIFY_SOCKET=address, WATCHDOG_USEC="100000") as process:
            assert await said(heard) == "READY=1"
            assert [await said(heard) for _ in range(3)] == ["WATCHDOG=1"] * 3
            insert = "INSERT INTO notifyworker.runs (kind, payload) VALUES ('until', jsonb_build_object('file', $1::text))"
            await connection.execute(insert, str(tmp_path / "go"))
            await eventually(lambda: connection.fetchval("SELECT EXISTS (SELECT FROM notifyworker.runs WHERE state = 'running')"))
            process.terminate()
            while await said(heard) != "STOPPING=1":
                pass
            assert [await said(heard) for _ in range(3)] == ["WATCHDOG=1"] * 3  # also while it drains
            (tmp_path / "go").touch()
            assert await asyncio.wait_for(process.wait(), 30) == 0


async def test_the_watchdog_of_another_process_hears_nothing(dsn: str, tmp_path: Path) -> None:
    with notify_socket(str(tmp_path / "notify")) as heard:
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}
        async with service(tmp_path, dsn, **env) as process:
            assert await said(heard) == "READY=1"
            process.terminate()
            assert await said(heard) == "STOPPING=1"


async def test_nobody_who_listens_is_told_and_no_harm(dsn: str, connection: asyncpg.Connection, tmp_path: Path) -> None:
    async with service(tmp_path, dsn, NOTIFY_SOCKET=str(tmp_path / "nowhere")) as process:
        # What has executed a run has started; its row alone is there before that.
        await connection.execute("INSERT INTO notifyworker.runs (kind) VALUES ('echo')")
        await eventually(lambda: connection.fetchval("SELECT EXISTS (SELECT FROM notifyworker.run_history)"), 30)
        process.terminate()
        _out, err = await process.communicate()
        assert process.returncode == 0
        assert '"event":"systemd_not_told"' in err.decode()


async def test_a_service_that_can_not_start_is_not_ready(empty_dsn: str, tmp_path: Path) -> None:
    with notify_socket(str(tmp_path / "notify")) as heard:
        async with service(tmp_path, empty_dsn, NOTIFY_SOCKET=str(tmp_path / "notify")) as process:
            assert await asyncio.wait_for(process.wait(), 30) == 3
            with pytest.raises(BlockingIOError):
                heard.recv(100)


def option(name: str) -> str:
    (value,) = re.findall(rf"^{name}=(.*)$", UNIT, re.MULTILINE)
    return value


def test_the_unit_fits_the_settings() -> None:
    assert option("Type") == "notify"
    assert int(option("TimeoutStopSec")) > Settings.model_fields["drain_timeout_s"].default + LEFT_S
    assert option("SuccessExitStatus") == "4"
    assert option("RestartPreventExitStatus") == "2"
    for name in re.findall(r"NOTIFYWORKER_([A-Z_]+)", UNIT):
        assert name == "APP" or name.lower() in Settings.model_fields


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    """All of it, with programs and folders that are there."""
    unit = tmp_path / "notifyworker@.service"
    unit.write_text(UNIT.replace("/opt/%i/.venv/bin/notifyworker", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "notifyworker@shop.service")],
        capture_output=True,
        text=True,
        check=False,
    )
    about = [line for line in (done.stdout + done.stderr).splitlines() if "notifyworker@" in line]
    assert about == [], done
    assert done.returncode == 0, done


# Kubernetes.


def containers() -> list[dict[str, Any]]:
    return [MANIFESTS[kind]["spec"]["template"]["spec"]["containers"][0] for kind in ("Job", "Deployment")]


def test_the_manifests_fit_the_settings() -> None:
    for container in containers():
        for variable in container["env"]:
            assert variable["name"].removeprefix("NOTIFYWORKER_").lower() in Settings.model_fields
        assert container["args"][0] in EXAMPLES
        assert container["securityContext"]["readOnlyRootFilesystem"]
    pod = MANIFESTS["Deployment"]["spec"]["template"]["spec"]
    worker = containers()[1]
    given = {variable["name"]: variable.get("value") for variable in worker["env"]}
    assert pod["terminationGracePeriodSeconds"] > float(given["NOTIFYWORKER_DRAIN_TIMEOUT_S"]) + LEFT_S
    assert pod["enableServiceLinks"] is False
    assert "NOTIFYWORKER_TOKEN" in given  # or it would not listen on 0.0.0.0
    assert {port["containerPort"] for port in worker["ports"]} == {int(given["NOTIFYWORKER_PORT"])}
    paths = {name: worker[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}
    assert set(paths.values()) | {"/metrics"} <= OPEN


def test_the_manifests_name_each_other() -> None:
    labels = MANIFESTS["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (MANIFESTS["Deployment"]["spec"]["selector"], MANIFESTS["PodDisruptionBudget"]["spec"]["selector"]):
        assert selector["matchLabels"].items() <= labels.items()
    scaled = MANIFESTS["ScaledObject"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == MANIFESTS["Deployment"]["metadata"]["name"]
    assert scaled["triggers"][0]["authenticationRef"]["name"] == MANIFESTS["TriggerAuthentication"]["metadata"]["name"]
    assert scaled["minReplicaCount"] >= 1
    assert set(re.findall(r"notifyworker_\w+", scaled["triggers"][1]["metadata"]["query"])) <= measured().keys()
    assert {file.name for file in KUBERNETES.iterdir()} == {*MANIFESTS["Kustomization"]["resources"], "kustomization.yaml"}
    images = {container["image"].partition(":")[0] for container in containers()}
    assert images == {image["name"] for image in MANIFESTS["Kustomization"]["images"]}


def test_definitions_of_others_are_held_to(tmp_path: Path) -> None:
    """deploy/crds.py, with small definitions in the manner of KEDA's and CloudNativePG's."""
    files = []
    for kind, group, version in (
        ("Cluster", "postgresql.cnpg.io", "v1"),
        ("ScaledObject", "keda.sh", "v1alpha1"),
        ("TriggerAuthentication", "keda.sh", "v1alpha1"),
    ):
        spec: dict[str, Any] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": {}}
        schema = {"properties": {"apiVersion": {}, "kind": {}, "metadata": {}, "spec": spec}}
        definition = {
            "group": group,
            "names": {"kind": kind},
            "versions": [{"name": version, "schema": {"openAPIV3Schema": schema}}],
        }
        files.append(tmp_path / f"{kind}.yaml")
        files[-1].write_text(yaml.safe_dump({"spec": definition}))

    def checked() -> tuple[int, str]:
        command = [sys.executable, str(ROOT / "deploy" / "crds.py"), *map(str, files)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    assert checked() == (0, "Cluster: passed\nScaledObject: passed\nTriggerAuthentication: passed\n")
    files[0].write_text(files[0].read_text().replace("x-kubernetes-preserve-unknown-fields: true", "additionalProperties: false"))
    files.pop()
    code, said = checked()
    assert code == 1
    assert re.search(r"Cluster: spec: Additional properties are not allowed .*'instances'", said)
    assert "TriggerAuthentication: no definition was given" in said


async def test_what_scales_counts_the_work(connection: asyncpg.Connection) -> None:
    """As a role that may only read; what is due later, or settled, is no work now."""
    query = MANIFESTS["ScaledObject"]["spec"]["triggers"][0]["metadata"]["query"]
    await connection.execute("SET ROLE notifyworker_observer")
    assert await connection.fetchval(query) == 0
    await connection.execute("RESET ROLE")
    await connection.execute(
        "INSERT INTO notifyworker.runs (kind, run_at) VALUES ('a', now()), ('b', now()), ('c', now() + interval '1 h')"
    )
    await connection.execute("SELECT notifyworker.cancel(run_id) FROM notifyworker.runs WHERE kind = 'b'")
    # Nor is what waits for another run, which more workers would not bring to its end.
    await connection.execute("INSERT INTO notifyworker.runs (kind, concurrency_key) VALUES ('d', 'k')")
    await connection.execute("UPDATE notifyworker.runs SET waits_for = 'key' WHERE kind = 'd'")
    await connection.execute("SET ROLE notifyworker_observer")
    assert await connection.fetchval(query) == 1


async def test_scaled_to_zero_and_back_nothing_is_left_lying(dsn: str, connection: asyncpg.Connection) -> None:
    """A scaler in KEDA's place: it asks what it is to ask, and starts and stops a worker by the answer."""
    query = MANIFESTS["ScaledObject"]["spec"]["triggers"][0]["metadata"]["query"]
    worker = Worker(dsn, poll_interval_s=60)  # what it finds, it finds by its first look

    @worker.handler("a")
    async def handle(run: Run) -> None:
        pass

    async def is_work(wanted: bool) -> bool:
        return (await connection.fetchval(query) > 0) is wanted

    for due_in in ("0 s", "300 ms", "0 s"):
        await eventually(lambda: is_work(False))  # to zero
        await connection.execute(
            "INSERT INTO notifyworker.runs (kind, run_at) VALUES ('a', now() + $1::text::interval)", due_in
        )  # and nobody listens
        await eventually(lambda: is_work(True))  # and back
        async with worker:
            await eventually(lambda: connection.fetchval("SELECT NOT EXISTS (SELECT FROM notifyworker.runs)"))
    assert await connection.fetchval("SELECT count(*) FROM notifyworker.run_history WHERE state = 'completed'") == 3


def test_compose_fits_the_settings_and_its_image_gets_all_that_a_wheel_needs(tmp_path: Path) -> None:
    """As far as can be told without an engine."""
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    worker = services["worker"]
    given = worker["environment"]
    for name in given:
        assert name == "PGPASSWORD" or name.removeprefix("NOTIFYWORKER_").lower() in Settings.model_fields
    assert float(worker["stop_grace_period"].removesuffix("s")) > float(given["NOTIFYWORKER_DRAIN_TIMEOUT_S"]) + LEFT_S
    assert worker["ports"] == [f"127.0.0.1::{given['NOTIFYWORKER_PORT']}"]
    assert f":{given['NOTIFYWORKER_PORT']}/readyz" in worker["healthcheck"]["test"][-1]
    for command in (services["migrate"]["command"], worker["command"], worker["healthcheck"]["test"][2]):
        assert command.split()[0] in EXAMPLES
    assert services["postgres"]["volumes"] == ["data:/var/lib/postgresql"]
    for line in re.findall(r"^COPY (?!examples)(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE):
        *sources, target = line.split()
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, tmp_path)
    (wheel,) = WheelBuilder(str(tmp_path)).build(directory=str(tmp_path / "dist"))
    assert "notifyworker/data.zip.xz" in zipfile.ZipFile(wheel).namelist()


def test_the_page_names_files_that_are_there() -> None:
    page = (ROOT / "docs" / "running.md").read_text()
    for path in re.findall(r"\]\(\.\./(.+?)\)", page) + re.findall(r"^cp (\S+)", page, re.MULTILINE):
        assert (ROOT / path).exists(), path
