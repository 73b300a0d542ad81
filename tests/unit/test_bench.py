"""The benchmark's own arithmetic and its client; that it measures is shown by running it."""

import contextlib
import importlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"

# The tools are no part of the package that is installed.
sys.path.insert(0, str(TOOLS))
command = importlib.import_module("benchmarks.command")
helpers = importlib.import_module("benchmarks.helpers")
machines = importlib.import_module("benchmarks.machines")
rows = importlib.import_module("benchmarks.rows")
wire = importlib.import_module("benchmarks.wire")
sys.path.remove(str(TOOLS))


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """A socket that answers every call on its connections by the same chunks, then closes if told so."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def one(*chunks: bytes, close: bool = False) -> str:
        path = str(tmp_path / str(len(listeners)))
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        listener.listen()
        listeners.append(listener)

        def answer(connection: socket.socket) -> None:
            # The client may hang up whenever it has enough.
            with connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
                while connection.recv(65536):
                    for chunk in chunks:
                        connection.sendall(chunk)
                    if close:
                        return

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threads.append(threading.Thread(target=answer, args=(connection,)))
                threads[-1].start()

        threads.append(threading.Thread(target=accept))
        threads[-1].start()
        return path

    yield one
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


# -- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "target", "met"),
    [
        (1.0, "<=1.0", True),
        (1.01, "<=1.0", False),
        (0.1, "<=0.15", True),
        (3.0, ">=3", True),
        (2.99, ">=3", False),
        (float("inf"), ">=3", True),
        (float("inf"), "<=1.0", False),
    ],
)
def test_a_ratio_meets_a_target_or_not(ratio: float, target: str, met: bool) -> None:
    assert rows.meets(ratio, target) is met


@pytest.mark.parametrize("target", ["", "1.0", "<1", "==1", ">=", ">=3x", ">= 3"])
def test_what_is_no_target_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match="no target"):
        rows.meets(1.0, target)


def test_a_row_compares_medians() -> None:
    quantity = rows.Quantity("wire", "kept/p50", "latency", "machined", "<=1.0")
    samples = {("kept/p50", "moored"): [9.0, 1.0, 2.0], ("kept/p50", "machined"): [4.0, 4.0, 100.0]}
    [row] = rows.compare([quantity], samples, {})
    assert (row.moored, row.peer, row.ratio, row.met, row.why) == (2.0, 4.0, 0.5, True, "")
    assert row.as_json() == {
        "name": "latency",
        "peer": "machined",
        "value_moored": 2.0,
        "value_peer": 4.0,
        "target": "<=1.0",
    }


def test_a_limit_needs_no_samples_of_a_peer() -> None:
    quantity = rows.Quantity("capacity", "fds/each", "fds", rows.LIMIT, "<=1.0", 1)
    [row] = rows.compare([quantity], {("fds/each", "moored"): [2.0]}, {})
    assert (row.peer, row.ratio, row.met) == (1, 2.0, False)


def test_what_was_not_measured_says_why_and_is_neither_met_nor_missed() -> None:
    quantity = rows.Quantity("cold", "first", "first call", "machined", "<=1.0")
    [row] = rows.compare([quantity], {("first", "machined"): [1.0]}, {("cold", "moored"): "gone"})
    assert (row.moored, row.peer, row.ratio, row.met, row.why) == (None, 1.0, None, None, "moored: gone")
    assert row.as_json()["why"] == "moored: gone"
    assert "NOT MEASURED: moored: gone" in rows.table([row])


def test_nothing_divided_by_nothing_is_no_difference() -> None:
    quantity = rows.Quantity("register", "k", "n", "machined", "<=1.0")
    for moored, ratio in ((0.0, 1.0), (1.0, float("inf"))):
        [row] = rows.compare([quantity], {("k", "moored"): [moored], ("k", "machined"): [0.0]}, {})
        assert row.ratio == ratio


def test_the_table_marks_what_is_missed() -> None:
    quantity = rows.Quantity("wire", "k", "rate", "machined", ">=3")
    for moored, word in ((2.0, "MISSED"), (3.0, "met")):
        table = rows.table(
            rows.compare([quantity], {("k", "moored"): [moored], ("k", "machined"): [1.0]}, {})
        )
        assert table.splitlines()[1].split()[-2:] == [">=3", word]


def test_every_quantity_has_a_group_a_sound_target_and_a_name_of_its_own() -> None:
    quantities = rows.quantities(rows.COUNTS)
    assert {quantity.group for quantity in quantities} == set(rows.GROUPS)
    assert len({(quantity.name, quantity.peer) for quantity in quantities}) == len(quantities)
    for quantity in quantities:
        assert (quantity.limit is not None) == (quantity.peer == rows.LIMIT)
        if quantity.target is not None:
            rows.meets(1.0, quantity.target)


# -- the client -------------------------------------------------------------------------------------------------------


def test_a_reply_is_taken_whole_however_it_comes(serve: Callable[..., str]) -> None:
    with wire.connect(serve(b'{"parameters":', b"{}}\0")) as sock:
        for _ in range(3):
            assert wire.exchange(sock.fileno(), wire.GET_INFO) == b'{"parameters":{}}\0'


def test_all_replies_are_taken_up_to_the_last(serve: Callable[..., str]) -> None:
    one, last = b'{"parameters":{"name":"a"},"continues":true}\0', b'{"parameters":{"name":"b"}}\0'
    for chunks in ((one, one, last), (one + one[:9], one[9:] + last[:5], last[5:]), (one + one + last,)):
        with wire.connect(serve(*chunks)) as sock:
            assert wire.exchange_all(sock.fileno(), wire.GET_INFO) == one + one + last


@pytest.mark.parametrize("method", ["exchange", "exchange_all"])
def test_an_error_and_a_closed_connection_are_no_measurement(serve: Callable[..., str], method: str) -> None:
    for path, words in (
        (serve(b'{"error":"a.b.C","parameters":{}}\0'), "GetInfo: .*a.b.C"),
        (serve(b'{"parameters"', close=True), "GetInfo: .*(closed|reset)"),
    ):
        with wire.connect(path) as sock, pytest.raises(wire.Unmeasurable, match=words):
            getattr(wire, method)(sock.fileno(), wire.GET_INFO)


def test_where_nobody_listens_nothing_is_measured(tmp_path: Path) -> None:
    with pytest.raises(wire.Unmeasurable, match="No such file"):
        wire.connect(str(tmp_path / "nobody"))


def test_throughput_counts_whole_replies_and_closes_its_connections(serve: Callable[..., str]) -> None:
    assert (
        min(wire.throughput(serve(b'{"parameters":', b"{}}\0"), 4, 0.05)) > 0
    )  # the fixture waits for the closing


@pytest.mark.parametrize(("part", "sample"), [(0.0, 1), (0.5, 51), (0.99, 100), (1.0, 100)])
def test_a_quantile_is_a_sample(part: float, sample: int) -> None:
    assert wire.quantile(list(range(100, 0, -1)), part) == sample


# -- processes --------------------------------------------------------------------------------------------------------


def test_leaders_live_outside_of_any_scope_of_theirs_and_are_buried() -> None:
    with machines.Leaders(3) as leaders:
        pids = list(leaders.pids)
        assert len(set(leaders.names)) == 3
        assert all(os.path.exists(f"/proc/{pid}") for pid in pids)
        assert not any(leaders.held(number) for number in range(3))
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_busctl_gets_each_value_in_its_own_words() -> None:
    properties = [
        ("Slice", ("s", "a b.slice")),
        ("PIDs", ("au", [7, 8])),
        ("Delegate", ("b", True)),
        ("No", ("as", [])),
    ]
    auxiliary = [("x.service", [("ExecStart", ("a(sasb)", [("/x", ["/x", "-y"], False)]))])]
    assert helpers.words("(sa(sv)a(sa(sv)))", ("u", properties, auxiliary)) == [
        *("u", "4", "Slice", "s", "a b.slice", "PIDs", "au", "2", "7", "8", "Delegate", "b", "true", "No", "as", "0"),
        *("1", "x.service", "1", "ExecStart", "a(sasb)", "1", "/x", "2", "/x", "-y", "false"),
    ]  # fmt: skip


def test_a_machine_ends_with_its_context() -> None:
    with helpers.Machine("m", 2) as machine:
        machine.spawn()
        assert os.path.exists(f"/proc/{machine.pid}")
        pid = machine.pid
        with pytest.raises(wire.Unmeasurable, match="is not there"):
            machine.kill()
    assert not os.path.exists(f"/proc/{pid}")


def test_names_of_leaders_are_used_once_in_a_run() -> None:
    with machines.Leaders(2) as first, machines.Leaders(2) as second:
        assert not set(first.names) & set(second.names)


def test_the_other_caller_calls_as_long_as_the_context_lasts(serve: Callable[..., str]) -> None:
    # In a process of its own: it forks, which a process with the server's threads should not.
    path = serve(b'{"parameters":{}}\0')
    script = (
        "import sys, time; from benchmarks.apart import OtherCaller\n"
        "with OtherCaller(sys.argv[1]) as other: time.sleep(0.1)\n"
        "assert other.waits and all(wait > 0 for wait in other.waits), other.waits"
    )
    subprocess.run(
        [sys.executable, "-c", script, path], check=True, timeout=30, env={"PYTHONPATH": str(TOOLS)}
    )


def test_the_observer_sees_when_each_becomes_true(tmp_path: Path) -> None:
    script = (
        "import os, sys, time; from benchmarks.apart import Observer\n"
        "paths = [os.path.join(sys.argv[1], str(number)) for number in range(3)]\n"
        "before = time.perf_counter()\n"
        "with Observer(3, lambda number: os.path.exists(paths[number])) as observer:\n"
        "    for path in paths: open(path, 'w').close()\n"
        "times = [before, *observer.seen, time.perf_counter()]\n"
        "assert times == sorted(times)\n"
        "assert len(observer.seen) == 3\n"
        "with Observer(2, lambda number: number == 0) as observer: pass\n"
        "assert len(observer.seen) == 1\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], check=True, timeout=30, env={"PYTHONPATH": str(TOOLS)}
    )


def test_the_other_caller_tells_when_nobody_answered(serve: Callable[..., str]) -> None:
    path = serve(b'{"error":"a.b.C"}\0')
    script = (
        "import sys; from benchmarks.apart import OtherCaller; from benchmarks.wire import Unmeasurable\n"
        "try:\n    with OtherCaller(sys.argv[1]): pass\n"
        "except Unmeasurable: sys.exit(0)\n"
        "sys.exit(3)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, path],
        check=False,
        timeout=30,
        env={"PYTHONPATH": str(TOOLS)},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr


# -- the command line -------------------------------------------------------------------------------------------------


def test_a_run_becomes_rows_of_the_groups_asked_for() -> None:
    args = command.arguments().parse_args(["--quick", "--only", "cold", "--rounds", "1"])
    options = command.options_from(args)
    lines = [
        {"key": "first", "peer": "moored", "value": 30.0},
        {"key": "first", "peer": "moored", "value": 20.0},
        {"key": "first", "peer": "moored", "value": 10.0},
        {"key": "first", "peer": "machined", "value": 40.0},
        {"group": "cold", "peer": "bare imports, forked by the generator", "error": "no Python"},
    ]
    found = {row.quantity.peer: row for row in command.rows_of(options, lines)}
    assert found["machined"].ratio == 0.5
    assert "no Python" in found["bare imports, forked by the generator"].why
    assert "no sample" in found["bare imports, started by PID 1 in the same way"].why
    assert len(found) == 3


def test_the_command_runs_as_a_script_and_names_its_groups() -> None:
    done = subprocess.run(
        [TOOLS / "bench", "--help"], check=True, capture_output=True, text=True, timeout=30
    )
    assert "--json" in done.stdout
    done = subprocess.run(
        [TOOLS / "bench", "--only", "nothing"], check=False, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    assert "capacity" in done.stderr
