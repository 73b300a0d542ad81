"""Prometheus scrapes the exporter, which asks moored; systemd-report asks moored itself."""

import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import trio
from moored import Processes, connect, end_moored, main_pid, register, run, start_listening, until

EXAMPLES = Path("/moorage/examples")
EXPORTER = "http://127.0.0.1:9958/metrics"
PROMETHEUS = "http://127.0.0.1:9099"
REPORT = "/usr/lib/systemd/systemd-report"
SECONDS = 40.0
"""Longest wait for Prometheus, which scrapes every two seconds: this is a slow kernel."""

USER = "sleep 1; exec python3 -c 'import time; b = bytearray(32 << 20); time.sleep(600)'"
HOG = "b = bytearray(256 << 20)"
LIMIT = 96 << 20


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as reply:
        return reply.read().decode()


def is_ready() -> bool:
    """Whether Prometheus answers."""
    try:
        return bool(fetch(f"{PROMETHEUS}/-/ready"))
    except urllib.error.HTTPError as error:
        error.close()  # it says that it will be
    except urllib.error.URLError:
        pass
    return False


def query(text: str) -> list[tuple[dict[str, str], float]]:
    """Ask Prometheus; raises HTTPError if it does not understand."""
    reply = json.loads(fetch(f"{PROMETHEUS}/api/v1/query?{urllib.parse.urlencode({'query': text})}"))
    assert reply["status"] == "success"
    return [(each["metric"], float(each["value"][1])) for each in reply["data"]["result"]]


async def until_told(text: str, true: Callable[[float], bool]) -> float:
    """Wait until Prometheus has one value for a query, for which something is true; return it."""

    def found() -> list[float]:
        values = [number for _, number in query(text)]
        return [number for number in values if len(values) == 1 and true(number)]

    return (await until(found, f"{text}: {query(text)}", seconds=SECONDS))[0]


@pytest.fixture(scope="module", autouse=True)
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """A Prometheus with the configuration that we ship, but scraping more often."""
    quick = Path("/run/systemd/system/moorage-exporter.service.d/quick.conf")
    quick.parent.mkdir()
    quick.write_text("[Service]\nExecStart=\nExecStart=/usr/bin/moorage-exporter --timeout=1\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "start", "moorage-exporter.socket")
    directory = tmp_path_factory.mktemp("prometheus")
    settings = (EXAMPLES / "prometheus/prometheus.yml").read_text()
    rules = EXAMPLES / "prometheus/moorage.rules.yml"
    fast = settings.replace("15s", "2s").replace("moorage.rules.yml", str(rules))
    (directory / "prometheus.yml").write_text(fast + "\nglobal: {evaluation_interval: 2s}\n")
    argv = [
        "prometheus", f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data",
        "--web.listen-address=127.0.0.1:9099", "--log.level=warn",
    ]  # fmt: skip
    with subprocess.Popen(argv) as process:
        assert any(is_ready() or time.sleep(0.1) for _ in range(400))
        yield
        process.terminate()


@pytest.fixture(autouse=True)
def _clean(everything_gone: None) -> None:
    """Every test here leaves nothing."""


def checked(*argv: str, text: str = "") -> str:
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False, timeout=50)
    assert (done.returncode, done.stderr) == (0, ""), f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


async def test_prometheus_is_told_of_memory_and_of_its_lack(spawn: Processes) -> None:
    async with await connect() as client:
        await register(client, "web", spawn(("sh", "-c", USER)), properties={"MemoryMax": LIMIT})
        # It goes on when a process of it is killed; the leader does nothing but to start the next one.
        loop = f"while :; do python3 -c '{HOG}'; sleep 1; done"
        hungry = {"MemoryMax": LIMIT, "MemorySwapMax": 0, "OOMPolicy": "continue"}
        await register(client, "db", spawn(("sh", "-c", loop)), properties=hungry)
        # A ratio, of what is used to what may be.
        ratio = 'moorage_machine_memory_bytes{machine="web"} / moorage_machine_memory_limit_bytes'
        assert await until_told(ratio, lambda found: found > 0.3) < 1
        assert query('moorage_machine_memory_limit_bytes{machine="web"}')[0][1] == LIMIT
        # A rate of OOM kills, and none of the other machine.
        rate = 'rate(moorage_machine_oom_kills_total{by="kernel",machine="%s"}[30s])'
        assert await until_told(rate % "db", lambda found: found > 0) < 10
        assert await until_told(rate % "web", lambda _: True) == 0
        await until_told('ALERTS{alertname="MachineOutOfMemory",machine="db"}', lambda found: found == 1)
        # All that is shown and watched is understood, whatever there is of it.
        for text in shown():
            query(text)
        rules = json.loads(fetch(f"{PROMETHEUS}/api/v1/rules"))["data"]["groups"][0]["rules"]
        assert {rule["health"] for rule in rules} == {"ok"}
        assert "SUCCESS" in checked(
            "promtool", "check", "rules", str(EXAMPLES / "prometheus/moorage.rules.yml")
        )
        text = fetch(EXPORTER)
        checked("promtool", "check", "metrics", text=text)
        # What a tool that knows nothing of the exporter says.
        values = reported()
        group = "/machine.slice/machine-web.scope"
        assert values["MemoryLimit", "web"] == LIMIT == int(kernel(group, "memory.max"))
        assert values["TasksCurrent", "web"] == int(kernel(group, "pids.current")) == 1
        assert values["OOMKills", "db"] > 0
        for name in ("web", "db"):
            await client.call("io.moorage.Machine.Stop", {"name": name})
        await until_told('sum(moorage_machines{class="vm"})', lambda found: found == 0)


def kernel(group: str, attribute: str) -> str:
    return Path(f"/sys/fs/cgroup{group}/{attribute}").read_text().strip()


def shown() -> list[str]:
    """The queries of the dashboard, with its variables filled in."""
    board = json.loads((EXAMPLES / "grafana/moorage.json").read_text())
    texts = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return [
        text.replace("$instance", ".+").replace("$machine", ".*").replace("$__rate_interval", "30s")
        for text in texts
    ]


def reported() -> dict[tuple[str, str], Any]:
    """What systemd-report has of moored: the last value of each family and machine."""
    whole = json.loads(run(REPORT, "generate", "io.moorage.Machine"))
    assert whole["mediaType"] == "application/vnd.io.systemd.report"
    assert "io.moorage.Machine.CpuUsage" in run(REPORT, "metrics", "--no-pager", "io.moorage.Machine")
    assert "io.moorage.Machine.Uptime" in run(REPORT, "describe", "--no-pager", "io.moorage.Machine")
    assert "unix:/run/systemd/report/io.moorage.Machine" in run(REPORT, "list-sources", "--no-pager")
    return {
        (each["name"].removeprefix("io.moorage.Machine."), each.get("object", "")): each["value"]
        for each in sorted(whole["metrics"], key=lambda each: str(each.get("fields", "")), reverse=True)
    }


async def test_a_moored_that_is_not_there_or_hangs(mortal: None) -> None:
    async with await connect() as client:
        await client.call("org.varlink.service.GetInfo")
    await until_told("moorage_up", lambda found: found == 1)
    run("systemctl", "kill", "--signal=STOP", "moored.service")
    await until_told("moorage_up", lambda found: found == 0)
    assert query("moorage_idle")[0][1] == 0
    run("systemctl", "kill", "--signal=CONT", "moored.service")
    await until_told("moorage_up", lambda found: found == 1)
    pid = main_pid()
    await end_moored()
    assert pid
    await until_told("moorage_up", lambda found: found == 0)
    start_listening()
    async with await connect() as client:
        await client.call("org.varlink.service.GetInfo")
    await until_told("moorage_up", lambda found: found == 1)
    run("systemctl", "stop", "moored.service")
    await until_told("moorage_idle", lambda found: found == 1)
    assert (await trio.to_thread.run_sync(query, "up"))[0][1] == 1


def test_the_exporter_may_do_nothing_else() -> None:
    fetch(EXPORTER)
    show = run("systemctl", "show", "moorage-exporter.service", "--property=MainPID,User,UID")
    pid = int(show.split("MainPID=")[1].split()[0])
    status = Path(f"/proc/{pid}/status").read_text()
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    uid = int(status.split("Uid:")[1].split()[0])
    assert uid >= 61184, "a dynamic user"
