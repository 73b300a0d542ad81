"""The part that runs in the sandbox: python3 -m benchmarks.inside OPTIONS (JSON, see rows.Options).

Writes one JSON object a line: {"key", "peer", "value"} for a sample, {"group", "peer", "error"} for what could not be
measured. The peers take turns within each round, and who begins changes from round to round. While one is measured, no
other one runs that listens to PID 1, for PID 1 and the broker would work for it as well.
"""

import contextlib
import itertools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial

from benchmarks import events, helpers, lookups, metrics, reaching, rows, running
from benchmarks.apart import OtherCaller
from benchmarks.machines import (
    PREFIX,
    Leaders,
    kill_all,
    list_all,
    list_by_name,
    register_one_by_one,
    register_together,
    register_until_refused,
    terminate_together,
)
from benchmarks.peers import (
    ASYNCVARLINK,
    MACHINED,
    MOORED,
    UNITS,
    VARLINK,
    Peer,
    cpu_of_broker,
    cpu_of_pid1,
    keep_apart,
    raise_limit_of_machined,
    settle,
    systemctl,
)
from benchmarks.wire import (
    GET_INFO,
    Unmeasurable,
    connect,
    exchange,
    fresh_latencies,
    kept_latencies,
    quantile,
    throughput,
)

WARM_UP_MACHINES = 16
"""Machines that are registered and stopped before anything is measured."""

SLICES = 3
"""Parts of a run. Their rates depend on where the scheduler puts both ends, which changes with each part."""

SCRAPES = 5
"""Scrapes in one round."""
QUIET_SECONDS = 0.5
"""How long another caller is looked at without a scrape, in s."""

FURTHER_OF_MACHINED = 1000
"""Machines from which the growth of machined is derived; as many as for moored would take minutes."""

IMPORTS_SECONDS = 60.0
IMPORTS = "import trio, msgspec, jeepney, varlink, systemd.daemon"
"""Dependencies of moored, from pyproject.toml."""

IMPORTS_SERVER = f"""\
{IMPORTS}
import socket
connection, _ = socket.socket(fileno=3).accept()
connection.recv(65536)
connection.sendall(b'{{}}\\0')
"""

BUSCTL, PLAIN, SYSTEMD_RUN, CGTOP = (
    Peer(name, "", "") for name in (rows.BUSCTL, rows.PLAIN, rows.SYSTEMD_RUN, rows.CGTOP)
)

IMPORTS_PEER = Peer(
    rows.IMPORTS_BY_PID1, "/run/bench-imports", "bench-imports.service", "bench-imports.socket"
)


class Bench:
    """Measures, and reports the figures."""

    def __init__(self, options: rows.Options) -> None:
        self.options = options
        self._begin = time.monotonic()
        self._numbers = itertools.count()

    def run(self) -> None:
        """Measure all groups."""
        for group in self.options.groups:
            {
                "wire": self.wire,
                "register": self.register,
                "helpers": self.with_helpers,
                "running": self.running,
                "capacity": self.capacity,
                "events": self.events,
                "inside": self.inside,
                "metrics": self.metrics,
                "cold": self.cold,
            }[group]()

    # -- the groups --------------------------------------------------------------------------------------------------

    def wire(self) -> None:
        """GetInfo."""
        peers = self.installed("wire", (MOORED, MACHINED, ASYNCVARLINK, VARLINK))
        for peer in peers:
            with self.guarded("wire", peer):
                peer.start()
                kept_latencies(peer.socket, self.options.calls)
        settle()
        for turn in self.rounds("wire", peers):
            for kind, measure, calls in (
                ("kept", kept_latencies, self.options.calls),
                ("fresh", fresh_latencies, self.options.calls // 3),
            ):
                for peer in turn:
                    with self.guarded("wire", peer):
                        waits = measure(peer.socket, calls)
                        self.sample(f"{kind}/p50", peer, quantile(waits, 0.5))
                        self.sample(f"{kind}/p99", peer, quantile(waits, 0.99))
            for connections in rows.CONNECTIONS:
                rates: dict[str, list[float]] = {peer.name: [] for peer in turn}
                for _ in range(SLICES):
                    for peer in turn:
                        with self.guarded("wire", peer):
                            used = peer.cpu()
                            calls, rate = throughput(peer.socket, connections, self.options.seconds / SLICES)
                            rates[peer.name].append(rate)
                            cost = (peer.cpu() - used) / calls * 1000
                            self.sample(f"throughput/{connections}/cpu", peer, cost)
                for peer in turn:
                    if rates[peer.name]:
                        mean = sum(rates[peer.name]) / len(rates[peer.name])
                        self.sample(f"throughput/{connections}", peer, mean)
        for peer in peers:
            peer.stop()

    def register(self) -> None:
        """Measure everything with real processes, except their maximum number."""
        peers = self.installed("register", (MOORED, MACHINED))
        raise_limit_of_machined(high=True)
        for turn in self.rounds("register", peers):
            for count in self.options.counts:
                for peer in turn:
                    with self.guarded("register", peer):
                        self.register_and_stop(peer, count)

    def register_and_stop(self, peer: Peer, count: int) -> None:
        """Measure a number of machines, one by one and together."""
        self.warm(peer)
        with Leaders(count) as leaders:
            done = register_one_by_one(peer.socket, leaders)
            for kind, waits in (("reply", done.replies), ("held", done.holds), ("true", done.true)):
                self.sample(f"serial/{count}/{kind}/p50", peer, quantile(waits, 0.5))
                self.sample(f"serial/{count}/{kind}/p99", peer, quantile(waits, 0.99))
            self.sample(f"serial/{count}/at-reply", peer, done.held_at_reply / count)
            settle()
            if count == rows.DEATHS:
                self.lists_and_deaths(peer, leaders)
            else:
                terminate_together(peer.socket, leaders)
        settle()
        with Leaders(count) as leaders:
            self.together(peer, leaders)
        peer.stop()

    def together(self, peer: Peer, leaders: Leaders) -> None:
        """Register and stop from many connections."""
        count = leaders.count
        before = cpu_of_pid1(), cpu_of_broker(), peer.cpu()
        with OtherCaller(peer.socket) as other:
            done = register_together(peer.socket, leaders)
        # Includes what the calls of the other caller cost the service, for both peers.
        settle()
        after = cpu_of_pid1(), cpu_of_broker(), peer.cpu()
        pid1, broker, service = ((b - a) / count for a, b in zip(before, after, strict=True))
        self.sample(f"together/{count}/held", peer, count / done.holds[0] * 1000)
        self.sample(f"together/{count}/reply", peer, count / done.replies[0] * 1000)
        self.sample(f"together/{count}/at-reply", peer, done.held_at_reply / count)
        self.sample(f"together/{count}/cpu", peer, pid1 + broker)
        self.sample(f"together/{count}/cpu/pid1", peer, pid1)
        self.sample(f"together/{count}/cpu/broker", peer, broker)
        self.sample(f"together/{count}/cpu/service", peer, service)
        self.sample(f"together/{count}/other/p50", peer, quantile(other.waits, 0.5))
        self.sample(f"together/{count}/other/p99", peer, quantile(other.waits, 0.99))
        used = cpu_of_pid1() + cpu_of_broker()
        self.sample(f"stop/{count}", peer, terminate_together(peer.socket, leaders))
        settle()
        self.sample(f"stop/{count}/cpu", peer, (cpu_of_pid1() + cpu_of_broker() - used) / count)

    def lists_and_deaths(self, peer: Peer, leaders: Leaders) -> None:
        """List machines, and kill all at once."""
        waits, listed = list_all(peer.socket, leaders.prefix, 20)
        if listed != leaders.count:
            raise Unmeasurable(f"List has {listed} of {leaders.count} machines")
        self.sample("list/all", peer, quantile(waits, 0.5))
        passes = [quantile(list_by_name(peer.socket, leaders), 0.5) for _ in range(SLICES)]
        self.sample("list/name", peer, sum(passes) / SLICES)
        with OtherCaller(peer.socket) as other:
            right = kill_all(peer.socket, leaders)
        self.sample("deaths/right", peer, right)
        self.sample("deaths/wait", peer, max(other.waits))

    def with_helpers(self) -> None:
        """Measure machines with helpers, by moored and by others that start the same units."""
        start: dict[Peer, Callable[[helpers.Machine], float]] = {
            MOORED: partial(helpers.by_moored, path=MOORED.socket),
            BUSCTL: helpers.by_busctl,
            PLAIN: helpers.by_plain_client,
            SYSTEMD_RUN: helpers.by_systemd_run,
        }
        peers = self.installed("helpers", tuple(start))
        for turn in self.rounds("helpers", peers):
            for peer in turn:
                with self.guarded("helpers", peer):
                    if peer is MOORED:
                        peer.start()
                    # The first one fills caches.
                    self.start_and_kill(peer, start[peer], 1, 0)
                    for count in rows.HELPERS:
                        self.start_and_kill(peer, start[peer], count, self.options.machines)
                    peer.stop()

    def start_and_kill(
        self, peer: Peer, start: Callable[[helpers.Machine], float], count: int, tries: int
    ) -> None:
        """Start machines with helpers, one after the other, and kill their leaders; with no tries, only warm up."""
        for number in range(max(1, tries)):
            with helpers.Machine(f"{PREFIX}{next(self._numbers)}", count) as machine:
                ms = start(machine)
                settle()
                used = cpu_of_pid1()
                gone = machine.kill()
                settle()
                if number < tries:
                    self.sample(f"helpers/{count}", peer, ms)
                    self.sample(f"helpers/{count}/gone", peer, gone)
                    self.sample(f"helpers/{count}/cpu", peer, cpu_of_pid1() - used)

    def running(self) -> None:
        """Measure what is done with machines that run, by moored and by systemd's own tools."""
        with Leaders(rows.FIRST_MACHINES) as leaders:
            figures: dict[Peer, Callable[[], running.Figures]] = {
                MOORED: partial(running.by_moored, leaders),
                BUSCTL: partial(running.by_busctl, leaders),
                CGTOP: running.by_cgtop,
            }
            peers = self.installed("running", tuple(figures))
            MOORED.start()
            register_together(MOORED.socket, leaders)
            for turn in self.rounds("running", peers):
                for peer in turn:
                    settle()
                    with self.guarded("running", peer):
                        for key, value in figures[peer]():
                            self.sample(key, peer, value)
            kill_all(MOORED.socket, leaders)
        MOORED.stop()

    def capacity(self) -> None:
        """Measure counts, which need only one round."""
        peers = self.installed("capacity", (MACHINED, MOORED))
        if MACHINED in peers:
            with self.guarded("capacity", MACHINED):
                self.progress("capacity, machined as it comes")
                raise_limit_of_machined(high=False)
                self.warm(MACHINED)
                with Leaders(rows.MACHINES) as leaders:
                    number, refusal = register_until_refused(MACHINED.socket, leaders)
                self.progress(f"  {number} machines{': ' if refusal else ''}{refusal}")
                self.sample("machines", MACHINED, number)
            self.clear(MACHINED)
            with self.guarded("capacity", MACHINED):
                self.progress("capacity, machined with a higher limit of open files")
                raise_limit_of_machined(high=True)
                self.grow(MACHINED, FURTHER_OF_MACHINED)
        if MOORED in peers:
            with self.guarded("capacity", MOORED):
                self.progress("capacity, moored")
                number = self.grow(MOORED, rows.MACHINES - rows.FIRST_MACHINES)
                self.sample("machines", MOORED, number)

    def grow(self, peer: Peer, further: int) -> int:
        """Measure memory and file descriptors. Return the number of machines reached."""
        peer.start()
        settle()
        none, fds = peer.memory(), peer.open_fds()
        self.sample("pss/none", peer, none["Pss"])
        self.sample("rss/none", peer, none["Rss"])
        self.sample("fds/none", peer, fds)
        with Leaders(rows.FIRST_MACHINES) as first, Leaders(further) as rest:
            register_together(peer.socket, first)
            settle()
            some, fds_of_some = peer.memory(), peer.open_fds()
            self.sample("pss/first", peer, some["Pss"])
            self.sample("rss/first", peer, some["Rss"])
            self.sample("fds/first", peer, fds_of_some)
            number, refusal = register_until_refused(peer.socket, rest)
            reached = rows.FIRST_MACHINES + number
            if refusal:
                self.progress(f"  {reached} machines: {refusal}")
            else:
                _, listed = list_all(peer.socket, PREFIX, 1)
                if listed != reached:
                    raise Unmeasurable(f"List has {listed} of {reached} machines")
            settle()
            self.sample("pss/each", peer, (peer.memory()["Pss"] - some["Pss"]) / max(1, number))
            self.sample("fds/each", peer, (peer.open_fds() - fds) / reached)
            kill_all(peer.socket, first)
            kill_all(peer.socket, rest)
        peer.stop()
        return reached

    def events(self) -> None:
        """Measure how soon ends are told, and what that costs others."""
        peers = self.installed("events", (MOORED, MACHINED))
        raise_limit_of_machined(high=True)
        for turn in self.rounds("events", peers):
            for peer in turn:
                with self.guarded("events", peer):
                    self.warm(peer)
                    for figures in (
                        events.of_ends(peer),
                        *((events.of_many(), events.of_few()) if peer is MOORED else ()),
                    ):
                        for key, name, value in figures:
                            self.write({"key": key, "peer": name, "value": value})
                    peer.stop()

    def inside(self) -> None:
        """Measure what reaches into a container."""
        peers = self.installed("inside", (MOORED, MACHINED))
        with self.guarded("inside", MOORED), reaching.containers() as root:
            self.turns("inside", peers, partial(reaching.figures, root=root))
        with self.guarded("inside", MOORED), lookups.container() as leader:
            self.turns("inside", peers, partial(lookups.figures, leader=leader))
        MOORED.stop()

    def turns(self, group: str, peers: Sequence[Peer], figures: Callable[[Peer], rows.Figures]) -> None:
        """Take samples of all peers in turn."""
        for turn in self.rounds(group, peers):
            for peer in turn:
                settle()
                with self.guarded(group, peer):
                    for key, value in figures(peer):
                        self.sample(key, peer, value)

    def metrics(self) -> None:
        """Measure scrapes, and what they cost another caller."""
        count = rows.SCRAPED
        for (peer,) in self.rounds("metrics", self.installed("metrics", (MOORED,))):
            with self.guarded("metrics", peer):
                metrics.install()
                self.warm(peer)
                with Leaders(count) as leaders:
                    register_together(peer.socket, leaders)
                    settle()
                    with OtherCaller(peer.socket) as other:
                        time.sleep(QUIET_SECONDS)
                    wait = quantile(other.waits, 0.99)
                    self.write({"key": "scrape/other/p99", "peer": rows.QUIET, "value": wait})
                    with OtherCaller(peer.socket) as other:
                        taken = [metrics.scrape(leaders.prefix, count) for _ in range(SCRAPES)]
                    self.sample("scrape/other/p99", peer, quantile(other.waits, 0.99))
                    self.sample("scrape", peer, quantile(taken, 0.5))
                    pattern = f'"object":"{leaders.prefix}'
                    for name, source, what in (
                        (peer.name, "io.moorage.Machine.CpuUsage", pattern),
                        (rows.CGROUP, "io.systemd.CGroup.CpuUsage", f'"object":"machine-{leaders.prefix}'),
                    ):
                        taken = [metrics.report(source, what, count) for _ in range(SCRAPES)]
                        self.write({"key": "report", "peer": name, "value": quantile(taken, 0.5)})
                    taken = [metrics.export(leaders.prefix, count) for _ in range(SCRAPES)]
                    self.sample("export", peer, quantile(taken, 0.5))
                    kill_all(peer.socket, leaders)

    def cold(self) -> None:
        """Measure the first call, and the imports of moored's dependencies by the same Python."""
        peers = self.installed("cold", (MOORED, MACHINED, IMPORTS_PEER))
        for turn in self.rounds("cold", peers):
            for _ in range(self.options.starts):
                for peer in turn:
                    with self.guarded("cold", peer):
                        self.first_call(peer)
                begin = time.perf_counter()
                subprocess.run([sys.executable, "-c", IMPORTS], check=True, timeout=IMPORTS_SECONDS)
                duration = (time.perf_counter() - begin) * 1000
                self.write({"key": "first", "peer": rows.IMPORTS_BY_FORK, "value": duration})

    def first_call(self, peer: Peer) -> None:
        """Stop the service, and measure the call that starts it."""
        peer.start()  # once before, so that its files are cached
        peer.stop()
        settle()
        begin = time.perf_counter()
        with connect(peer.socket) as sock:
            exchange(sock.fileno(), GET_INFO)
        self.sample("first", peer, (time.perf_counter() - begin) * 1000)
        peer.stop()

    # -- around them -------------------------------------------------------------------------------------------------

    def installed(self, group: str, peers: Sequence[Peer]) -> list[Peer]:
        """Return the peers that are installed in this sandbox."""
        found: list[Peer] = []
        for peer in peers:
            with self.guarded(group, peer):
                if peer is IMPORTS_PEER:
                    install_imports()
                peer.install()
                found.append(peer)
        return found

    def rounds(self, group: str, peers: Sequence[Peer]) -> Iterator[list[Peer]]:
        """Yield the peers for each round, in the order of that round."""
        for number in range(self.options.rounds):
            self.progress(f"{group}, round {number + 1} of {self.options.rounds}")
            start = number % max(1, len(peers))
            yield [*peers[start:], *peers[:start]]

    def warm(self, peer: Peer) -> None:
        """Start a peer, and let it do everything once."""
        peer.start()
        with Leaders(WARM_UP_MACHINES) as leaders:
            register_together(peer.socket, leaders)
            list_all(peer.socket, leaders.prefix, 1)
            terminate_together(peer.socket, leaders)
        settle()

    def clear(self, peer: Peer) -> None:
        """Bring the sandbox back to a state without machines, whatever went wrong. All leaders are dead by now."""
        with contextlib.suppress(Unmeasurable):
            systemctl("stop", f"machine-{PREFIX}*")
        with contextlib.suppress(Unmeasurable):
            systemctl("reset-failed", f"machine-{PREFIX}*")
        if peer.activation is not None:
            systemctl("kill", "--signal=KILL", "--kill-whom=all", peer.service)
        peer.stop()

    @contextlib.contextmanager
    def guarded(self, group: str, peer: Peer) -> Generator[None]:
        """Report why something could not be measured, and continue."""
        try:
            yield
        except (Unmeasurable, OSError, subprocess.SubprocessError) as error:
            self.progress(f"  {peer.name}: {error}")
            self.write({"group": group, "peer": peer.name, "error": str(error)})
            with contextlib.suppress(Unmeasurable):
                self.clear(peer)

    def sample(self, key: str, peer: Peer, value: float) -> None:
        """Report a figure."""
        self.write({"key": key, "peer": peer.name, "value": value})

    def write(self, line: dict[str, str | float]) -> None:
        """Write a line for the host."""
        print(json.dumps(line), flush=True)

    def progress(self, text: str) -> None:
        """Report progress."""
        print(f"{time.monotonic() - self._begin:5.0f} s  {text}", file=sys.stderr, flush=True)


def install_imports() -> None:
    """Return units of a service that imports the dependencies of moored, replies to one call, and ends."""
    (UNITS / IMPORTS_PEER.service).write_text(
        f"[Service]\nExecStart={sys.executable} /run/bench-imports.py\n"
    )
    (UNITS / "bench-imports.socket").write_text(f"[Socket]\nListenStream={IMPORTS_PEER.socket}\n")
    with open("/run/bench-imports.py", "w", encoding="utf-8") as file:
        file.write(IMPORTS_SERVER)
    systemctl("daemon-reload")


def main() -> None:
    """Measure what the host asks for."""
    _, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, highest))
    os.environ.setdefault("PYTHONPATH", os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    keep_apart()
    Bench(rows.Options(**json.loads(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
