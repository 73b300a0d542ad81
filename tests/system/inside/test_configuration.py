"""moored.conf: what is read in which order, what is in force when, and what is said of what is wrong."""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest
import trio
from moored import (
    OURS,
    SOCKET,
    UNTIL_SECONDS,
    USER,
    Processes,
    configure,
    connect,
    cursor,
    describe,
    for_us,
    kill,
    listed,
    logged,
    main_pid,
    register,
    run,
    show,
    signal_moored,
    until,
    verdict,
)

from moorage.configuration.files import BYTES_MAX
from moorage.errors import Busy, CursorExpired, NoSuchMachine, Timeout
from moorage.wire.errors import InvalidParameter

NAME = "user.conf" if USER else "moored.conf"
OWN = Path.home() / ".config/moorage" if USER else Path("/etc/moorage")
DIRECTORIES = [OWN, Path("/run/moorage"), Path("/usr/local/lib/moorage"), Path("/usr/lib/moorage")]
MAIN = OWN / NAME
DROP_INS = OWN / f"{NAME}.d"

pytestmark = pytest.mark.usefixtures("clean")


@pytest.fixture
def clean(moored: None) -> Generator[None]:
    """Have a service that runs, and leave it as it is without a file."""
    run("moorctl", "list")
    yield
    shutil.rmtree(OWN, ignore_errors=True)
    for directory in () if USER else DIRECTORIES[1:]:
        (directory / NAME).unlink(missing_ok=True)
        shutil.rmtree(directory / f"{NAME}.d", ignore_errors=True)
    run("systemctl", "restart", "moored.service")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def reload() -> None:
    """Reload the service, which is over when this returns."""
    pid = main_pid()
    run("systemctl", "reload", "moored.service")
    assert main_pid() == pid != 0, "it is the same process"


def called(argv: Sequence[str], user: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command that has to succeed, as another user."""
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=UNTIL_SECONDS, user=user)


def shown() -> dict[str, dict[str, str]]:
    """What moorctl config tells of each option."""
    return {option["name"]: option for option in json.loads(run("moorctl", "config", "--json"))["options"]}


def doctor() -> dict[str, str]:
    """What moorctl doctor says of the configuration."""
    findings = [json.loads(line) for line in run("moorctl", "doctor", "--json").splitlines()]
    return next(finding for finding in findings if finding["subject"] == "configuration")


def value(name: str) -> tuple[str, str]:
    """The value in force, and where it comes from."""
    option = shown()[name]
    return option["value"], option["source"]


@pytest.mark.system_instance("the other directories are root's")
def test_files_in_systemds_order() -> None:
    for number, directory in enumerate(DIRECTORIES):
        write(directory / NAME, f"machinesMax = {100 + number}\nverdictsMax = {200 + number}\n")
        # The number of the directory is the value, so that the first one has won.
        write(directory / f"{NAME}.d/20-same.conf", f"machinesPerUserMax = {number + 1}\n")
        write(directory / f"{NAME}.d/{90 - 10 * number}-own.conf", f"verdictsMax = {300 + number}\n")
    write(Path(f"/usr/lib/moorage/{NAME}.d/10-masked.conf"), "tasksMax = 5\n")
    (DROP_INS / "10-masked.conf").symlink_to("/dev/null")
    reload()
    assert value("machinesMax") == ("100", f"{MAIN}:1")
    assert value("machinesPerUserMax") == ("1", f"{DROP_INS}/20-same.conf:1")
    assert value("verdictsMax") == ("300", f"{DROP_INS}/90-own.conf:1"), "by name, whatever the directory"
    assert value("tasksMax") == ("16384", "default")
    shutil.rmtree(OWN)
    reload()
    assert value("machinesMax") == ("101", f"/run/moorage/{NAME}:1")
    assert value("machinesPerUserMax") == ("2", f"/run/moorage/{NAME}.d/20-same.conf:1")
    assert value("verdictsMax") == ("301", f"/run/moorage/{NAME}.d/80-own.conf:1")
    assert value("tasksMax") == ("5", f"/usr/lib/moorage/{NAME}.d/10-masked.conf:1")


def test_what_is_wrong_is_in_the_journal_and_the_rest_in_force() -> None:
    write(MAIN, 'machinesmax = 5\nverdictsMax = 7\n\nleaseGrace = 5\nidleTimeout = "1h"\n')
    write(DROP_INS / "broken.conf", "verdictsMax = 8\n\nverdictsMax 9\n")
    os.mkfifo(DROP_INS / "fifo.conf")
    write(DROP_INS / "huge.conf", "#" * (BYTES_MAX + 1))
    write(DROP_INS / "loose.conf", "verdictsMax = 9\n")
    (DROP_INS / "loose.conf").chmod(0o666)
    (DROP_INS / "secret.conf").symlink_to("/proc/1/mem")
    expected = [
        f"{MAIN}:1: there is no option machinesmax, ignoring it; did you mean machinesMax?",
        f"{MAIN}:4: leaseGrace: must be a span of time in quotation marks",
        f"{DROP_INS}/broken.conf:3: it is not TOML",
        f"{DROP_INS}/fifo.conf: it is not a file; the file is ignored",
        f"{DROP_INS}/huge.conf: it has more than {BYTES_MAX} bytes; the file is ignored",
        f"{DROP_INS}/loose.conf: everybody can write it; chmod o-w would mend that; the file is ignored",
        f"{DROP_INS}/secret.conf: ",
    ]
    for again in (reload, lambda: run("systemctl", "restart", "moored.service")):
        before = cursor()
        again()
        said = [line for line in logged(before) if str(OWN) in line]
        assert len(said) == len(expected), said
        assert all(line.startswith(start) for line, start in zip(said, expected, strict=True)), said
        assert value("verdictsMax") == ("7", f"{MAIN}:2")
        assert value("idleTimeout") == ("1h", f"{MAIN}:5")
        assert value("leaseGrace") == ("5s", "default")
        done = called(for_us("moorctl", "config"))
        assert done.stderr.splitlines() == [f"Warning: {line}" for line in said]
        finding = doctor()
        assert finding["state"] == "limited"
        assert finding["words"] == f"7 problems in its files, the first is {said[0]}"
    assert show("moored.service", "Result")["Result"] == "success"


async def test_a_reload_is_told_to_the_manager_and_applies(spawn: Processes) -> None:
    async with await connect() as client:
        await register(client, "one", spawn())
        write(MAIN, 'machinesMax = 1\ntimeoutMax = "20s"\nslice = "vms.slice"\ntasksMax = 77\n')
        before = cursor()
        reload()
        assert "Read the configuration again." in logged(before)
        assert set(await listed(client)) == {"one"}, "it is the same connection, too"
        with pytest.raises(Busy):
            await register(client, "two", spawn())
        for method in ("Stop", "Freeze", "Thaw"):
            with pytest.raises(InvalidParameter, match="timeoutUSec"):
                await client.call(f"{OURS}{method}", {"name": "one", "timeoutUSec": 21_000_000})
        for parameter in ("timeoutUSec", "execStopTimeoutUSec"):
            with pytest.raises(InvalidParameter, match=parameter):
                await register(client, "two", spawn(), **{parameter: 21_000_000})
        write(MAIN, 'slice = "vms.slice"\ntasksMax = 77\n')
        reload()
        two = (await register(client, "two", spawn()))["machine"]
        assert two["slice"] == "vms.slice"
        assert show(two["unit"], "Slice", "TasksMax") == {"Slice": "vms.slice", "TasksMax": "77"}
        mine = (await register(client, "three", spawn(), slice="own.slice", properties={"TasksMax": 5}))[
            "machine"
        ]
        assert show(mine["unit"], "Slice", "TasksMax") == {"Slice": "own.slice", "TasksMax": "5"}
        planned = await register(client, "four", spawn(), dryRun=True, sliceProperties={})
        assert [unit["unit"] for unit in planned["units"]] == ["machine-four.scope", "vms-four.slice"]
        assert planned["units"][0]["defaults"] == {"TasksMax": 77}
        MAIN.unlink()
        reload()
        # A machine stays where it is, and the same call gets the same reply.
        again = await register(client, "two", two["leader"]["pid"])
        assert again["machine"]["slice"] == "vms.slice"
        five = (await register(client, "five", spawn()))["machine"]
        assert (five["slice"], show(five["unit"], "TasksMax")["TasksMax"]) == ("machine.slice", "16384")


async def test_reloads_in_a_row_and_by_the_signal(spawn: Processes) -> None:
    async with await connect() as client:
        await register(client, "web", spawn())
        for number in range(1, 30):
            write(MAIN, f"verdictsMax = {number}\n")
            signal_moored(1)
        await until(lambda: value("verdictsMax")[0] == "29")
        for number in range(30, 33):
            write(MAIN, f"verdictsMax = {number}\n")
            await trio.run_process(for_us("systemctl", "reload", "moored.service"))
            assert value("verdictsMax") == (str(number), f"{MAIN}:1")
        assert await describe(client, "web")
    assert show("moored.service", "ActiveState", "SubState") == {
        "ActiveState": "active",
        "SubState": "running",
    }


def test_what_needs_a_restart_says_so_and_gets_it() -> None:
    write(MAIN, 'leaseGrace = "7s"\n')
    before = cursor()
    reload()
    assert "Read the configuration again; a restart is needed for leaseGrace." in logged(before)
    option = shown()["leaseGrace"]
    assert (option["value"], option["source"]) == ("5s", "default")
    assert (option["afterRestart"], option["afterRestartSource"]) == ("7s", f"{MAIN}:1")
    row = next(line for line in run("moorctl", "config").splitlines() if line.startswith("leaseGrace"))
    assert row.split(maxsplit=3) == ["leaseGrace", "5s", "default", f"7s ({MAIN}:1)"]
    assert doctor()["words"].endswith("; a restart will change leaseGrace")
    run("systemctl", "restart", "moored.service")
    assert value("leaseGrace") == ("7s", f"{MAIN}:1")
    changed = [name for name, each in shown().items() if each["value"] != each["default"]]
    assert doctor()["words"].startswith(f"{len(shown()) - len(changed)} of {len(shown())} ")
    assert "afterRestart" not in shown()["leaseGrace"]


async def test_a_deadline_of_the_configuration(spawn: Processes) -> None:
    write(MAIN, 'stopTimeout = "1s"\nregisterTimeout = "1s"\n')
    reload()
    stubborn = spawn(["sh", "-c", "trap '' TERM; while :; do sleep 1; done"])
    async with await connect() as client:
        await register(client, "web", stubborn, timeoutUSec=20_000_000)
        with pytest.raises(Timeout):
            await client.call(f"{OURS}Stop", {"name": "web"})
        kill(stubborn)
        await verdict(client, "web")


async def test_verdicts_go_when_there_may_be_fewer(spawn: Processes) -> None:
    write(MAIN, "verdictsMax = 2\n")
    reload()
    async with await connect() as client:
        for name in ("one", "two", "three"):
            leader = spawn()
            await register(client, name, leader)
            kill(leader)
            await verdict(client, name)
        with pytest.raises(NoSuchMachine):
            await describe(client, "one")
        assert (await describe(client, "two"))["phase"] == "exited"


async def test_fewer_events_are_kept_after_a_restart(spawn: Processes) -> None:
    async def after(cursor: str | None) -> str:
        parameters = {"cursor": cursor} if cursor else {}
        async with (
            await connect() as client,
            client.call_more(f"{OURS}Subscribe", parameters) as replies,
        ):
            async for reply in replies:
                return reply["event"]["cursor"]
        raise AssertionError("no event")

    write(MAIN, 'eventsMax = 16\neventsSize = "1M"\n')
    run("systemctl", "restart", "moored.service")
    before = await after(None)
    async with await connect() as client:
        for number in range(10):
            leader = spawn()
            await register(client, f"m{number}", leader)
            kill(leader)
            await verdict(client, f"m{number}")
    with pytest.raises(CursorExpired):
        await after(before)


async def test_the_command_line_counts_more() -> None:
    write(MAIN, 'logLevel = "err"\nidleTimeout = "1h"\n')
    configure("--log-level=debug", "--idle-timeout=0")
    try:
        run("systemctl", "restart", "moored.service")
        assert value("logLevel") == ("debug", "--log-level")
        assert value("idleTimeout") == ("infinity", "--idle-timeout")
    finally:
        configure()
    run("systemctl", "restart", "moored.service")
    assert value("logLevel") == ("err", f"{MAIN}:1")
    reload()
    async with await connect() as client:
        await client.call("io.systemd.service.SetLogLevel", {"level": 7})
        assert await client.call("io.systemd.service.GetLogLevel") == {"level": 7}
    option = shown()["logLevel"]
    assert option["source"] == "io.systemd.service.SetLogLevel"
    assert (option["value"], option["afterRestart"]) == ("debug", "err")
    before = cursor()
    reload()
    assert value("logLevel") == ("debug", "io.systemd.service.SetLogLevel"), "it outlives a reload"
    assert any(line.startswith("Read the configuration again") for line in logged(before))


async def test_the_service_exits_when_it_is_told_to() -> None:
    write(MAIN, 'idleTimeout = "1s"\nadopt = false\n')  # one that adopts stays
    run("systemctl", "restart", "moored.service")
    await until(lambda: main_pid() == 0, seconds=UNTIL_SECONDS)
    assert value("idleTimeout") == ("1s", f"{MAIN}:1"), "which the next call starts again"


@pytest.mark.system_instance("a user's instance answers nobody else")
def test_others_are_told_the_values_only() -> None:
    write(MAIN, "verdictsMax = 2\nnonsense = 3\n")
    reload()
    done = called(["moorctl", "config", "--json"], user=1000)
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert set(told) == {"options"}
    assert {"name": "verdictsMax", "value": "2", "default": "1024"} in told["options"]
    assert str(OWN) not in done.stdout
    lines = called(["moorctl", "config"], user=1000).stdout.splitlines()
    assert lines[0].split() == ["OPTION", "VALUE"]


@pytest.mark.system_instance("users have limits of theirs")
def test_a_user_has_fewer_connections() -> None:
    write(MAIN, "connectionsPerUserMax = 1\n")
    reload()
    script = (
        "import json, socket\n"
        "made = [socket.socket(socket.AF_UNIX) for _ in range(2)]\n"
        "for each in made:\n"
        f"    each.connect({SOCKET!r})\n"
        "    each.send(json.dumps({'method': 'org.varlink.service.GetInfo'}).encode() + b'\\0')\n"
        "    print(each.recv(4096).decode())\n"
    )
    done = called(["python3", "-c", script], user=1000)
    first, second = done.stdout.splitlines()
    assert "moored" in first
    assert f'"errno":{errno.EUSERS}' in second.replace(" ", "")
