"""What runs in the sandbox: python3 -m fuzzing.boundary.inside SECONDS SEED FIRST. Rounds of calls of users at once.

Round N of a seed is the same whatever came before it: FIRST is the one to begin with. After each round it is looked
whether all is as the rules have it, and put back what was allowed to change.
"""

import array
import contextlib
import json
import math
import os
import random
import socket
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

from hostile import dial

from fuzzing.boundary.requests import (
    KEPT,
    NOTE,
    OURS,
    ROOT,
    USERS,
    Ask,
    Conversation,
    mark_of,
    secret_of,
    write_round,
)
from fuzzing.boundary.rules import UIDS, Outcome, Reply, Rules
from fuzzing.boundary.system import (
    DIRECTORIES,
    RECORDS,
    Canaries,
    Leaders,
    Users,
    changes,
    commands,
    group_of,
    loaded,
    processes_of_machines,
    secrets_seen,
    show,
    uids_of,
    until,
)
from fuzzing.inside import EIO, ERRORS, FDS_OF_MACHINE, run
from moorage import names
from moorage.names import UnitNames

ANSWER_SECONDS = 100.0
"""For all replies of a conversation: a helper may wait for its end for a minute and a half."""

ROOT_SECONDS = 30.0
"""For root's own Register and Stop, whatever the users do."""

LASTING = {f"{OURS}Subscribe", f"{OURS}AwaitStop"}
"""Calls that are answered for as long as somebody listens."""

LASTING_SECONDS = 3.0
"""For how long somebody does."""

PROBE = "probe"
"""Root's own machine that is registered and stopped while the users call."""

LOOKS = 25
"""Rounds between two looks at the journal."""

UNKNOWN: Reply | None = None


def _encode(ask: Ask) -> bytes:
    return json.dumps({"method": ask.method, "parameters": ask.parameters, **ask.flags}).encode() + b"\0"


def _send(connected: socket.socket, conversation: Conversation) -> None:
    data = b"".join(map(_encode, conversation.asks))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        if conversation.descriptor is not None:
            fd = os.pidfd_open(conversation.descriptor)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            try:
                # Who may not send any gets EPERM once the connection is accepted; the rest is sent all the same.
                with contextlib.suppress(PermissionError):
                    data = data[connected.sendmsg([data], rights) :]
            finally:
                os.close(fd)
        connected.sendall(data)


def converse(connected: socket.socket, conversation: Conversation) -> str:
    """Hold a conversation, and return all that was received."""
    with connected:
        connected.settimeout(ANSWER_SECONDS)
        _send(connected, conversation)
        if conversation.leaves is not None:
            time.sleep(conversation.leaves)
            return ""
        received, end = bytearray(), math.inf
        lasts = any(ask.method in LASTING for ask in conversation.asks)
        if lasts:
            connected.settimeout(LASTING_SECONDS)
            end = time.monotonic() + LASTING_SECONDS
        with contextlib.suppress(ConnectionResetError):
            with contextlib.suppress(OSError):  # hung up already
                connected.shutdown(socket.SHUT_WR)
            try:
                while (data := connected.recv(1 << 16)) and time.monotonic() < end:
                    received += data
            except TimeoutError:
                if not lasts:
                    raise
        return received[: received.rfind(b"\0") + 1].decode() if lasts else received.decode()


def replies_of(conversation: Conversation, received: str) -> list[Reply | None]:
    """The last reply to each call of a conversation; None where it is not known.

    Raises:
        AssertionError: what was received is no sequence of replies.
    """
    assert not received or received.endswith("\0"), received
    found: list[Reply | None] = []
    for text in received.split("\0")[:-1]:
        reply = json.loads(text)
        if reply.get("continues"):
            continue
        if "error" in reply:
            assert reply["error"] in ERRORS, reply
            assert (reply["error"], reply["parameters"].get("errno")) != ("io.systemd.System", EIO), reply
        found.append(reply)
    assert len(found) <= len(conversation.asks), received
    return [*found, *[UNKNOWN] * (len(conversation.asks) - len(found))]


class Boundary:
    """The service, and what must be true of it. A context."""

    def __enter__(self) -> Self:
        run("systemctl", "start", "moored.socket")
        self._users = Users()
        self._kept = subprocess.Popen(["sleep", "infinity"], stdout=subprocess.DEVNULL)
        self.root(
            "Register",
            {
                "name": KEPT,
                "class": "vm",
                "leader": {"pid": self._kept.pid},
                "helpers": [
                    {
                        "name": "fs",
                        "execStart": ["/usr/bin/sleep", "infinity"],
                        "sockets": [{"name": "fs.sock"}],
                    }
                ],
                "sshPrivateKeyPath": secret_of(ROOT),
                "controlAddress": secret_of(ROOT),
            },
        )
        self._canaries = Canaries()
        self._pid = run("systemctl", "show", "--value", "--property=MainPID", "moored.service").strip()
        self._fds = self._open_fds()
        self._units = loaded()
        self._state = self._of_kept()
        self._cursor = run("journalctl", "--lines=0", "--show-cursor").rpartition("-- cursor: ")[2].strip()
        self.outcomes: Counter[str] = Counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._kept.kill()
        self._kept.wait()

    def root(self, method: str, parameters: Any = None) -> list[Reply]:
        """Have root call, and return the replies.

        Raises:
            AssertionError: there is no answer in time.
        """
        ask = Ask(f"{OURS}{method}", parameters or {}, {"more": True} if method == "List" else {})
        with dial() as connected:
            connected.settimeout(ROOT_SECONDS)
            received = converse(connected, Conversation(ROOT, [ask], None, None))
        assert received.endswith("\0"), f"root had no answer to {method}: {received!r}"
        return [json.loads(text) for text in received.split("\0")[:-1]]

    def _machines(self) -> dict[str, dict[str, Any]]:
        replies = [reply for reply in self.root("List") if "error" not in reply]
        return {reply["parameters"]["machine"]["name"]: reply["parameters"]["machine"] for reply in replies}

    def _open_fds(self) -> int:
        return len(os.listdir(f"/proc/{self._pid}/fd"))

    def _of_kept(self) -> dict[str, dict[str, str]]:
        machine = self._machines().get(KEPT, {})
        told = {name: json.dumps(value) for name, value in machine.items()}
        return show(sorted(unit for unit in loaded() if unit.startswith(f"machine-{KEPT}"))) | {"told": told}

    def round(self, seed: int, number: int) -> None:
        """Hold the conversations of a round, and look what came of them.

        Raises:
            AssertionError: what should not.
        """
        chance = random.Random(f"{seed} {number}")
        leaders = Leaders(self._users, containers=chance.random() < 0.25)
        conversations = write_round(chance, leaders.all, self._canaries.pid)
        try:
            received = self._hold(chance, conversations)
            self._judge(chance, conversations, received, leaders)
        except BaseException:
            for told in (*leaders.all, *conversations):
                print(f"    {told}", flush=True)
            raise
        finally:
            leaders.bury()
        if number % LOOKS == 0:
            self.look()

    def _hold(self, chance: random.Random, conversations: Sequence[Conversation]) -> list[str]:
        reload_after = chance.uniform(0, 0.1) if chance.random() < 0.2 else None
        dialled = [self._users.dial(conversation.user) for conversation in conversations]
        with ThreadPoolExecutor(len(conversations) + 2) as pool:
            held = [pool.submit(converse, *each) for each in zip(dialled, conversations, strict=True)]
            probed = pool.submit(self._probe)
            if reload_after is not None:
                time.sleep(reload_after)
                run("systemctl", "daemon-reload")
            probed.result()
            return [each.result() for each in held]

    def _probe(self) -> None:
        """See that root is answered."""
        process = subprocess.Popen(["sleep", "infinity"], stdout=subprocess.DEVNULL)
        try:
            wanted = {"name": PROBE, "class": "vm", "leader": {"pid": process.pid}}
            (reply,) = self.root("Register", wanted)
            assert "error" not in reply, f"root's Register: {reply}"
            (reply,) = self.root("Stop", {"name": PROBE, "timeoutUSec": round(ROOT_SECONDS * 1e6)})
            assert "error" not in reply, f"root's Stop: {reply}"
        finally:
            process.kill()
            process.wait()

    def _judge(
        self,
        chance: random.Random,
        conversations: Sequence[Conversation],
        received: Sequence[str],
        leaders: Leaders,
    ) -> None:
        self._quiet()
        replies = [replies_of(*each) for each in zip(conversations, received, strict=True)]
        for conversation, known in zip(conversations, replies, strict=True):
            for ask, reply in zip(conversation.asks, known, strict=True):
                done = f"{ask.method.rpartition('.')[2]} of {conversation.user} done"
                self.outcomes["unknown" if reply is None else "refused" if "error" in reply else done] += 1
        rules = Rules(leaders.all)
        outcome = rules.outcome(conversations, replies)
        problems = [*rules.wrongly_answered(conversations, replies, outcome)]
        for conversation, text in zip(conversations, received, strict=True):
            others = [secret_of(user) for user in {*USERS} - {conversation.user}]
            problems += secrets_seen(conversation.user, text, others)
        self._settled(outcome, leaders)
        if chance.random() < 0.4:
            self._reload()
            self._settled(outcome, leaders)
        assert not problems, "\n".join(problems)
        self._put_back(outcome, leaders)

    def _quiet(self) -> None:
        """Wait until nothing is under way: whoever hung up is forgotten."""

        def calm() -> bool:
            return self._open_fds() <= self._fds + FDS_OF_MACHINE * len(self._machines())

        until(calm, lambda: f"{self._open_fds()} file descriptors, were {self._fds}")

    def _settled(self, outcome: Outcome, leaders: Leaders) -> None:
        """See that all is as it must be, once what is under way has come to an end."""
        problems: list[str] = []

        def well() -> bool:
            problems[:] = self._problems(outcome, leaders)
            return not problems

        until(well, lambda: "\n".join(problems))

    def _problems(self, outcome: Outcome, leaders: Leaders) -> Iterator[str]:
        yield from self._canaries.problems()
        for change in changes(self._state, self._of_kept()):
            yield f"{KEPT} has changed: {change}"
        yield from self._of_units(outcome)
        yield from self._of_processes(outcome, leaders)

    def _of_units(self, outcome: Outcome) -> Iterator[str]:
        scopes = {UnitNames(name).scope: name for name in outcome.scopes if names.is_machine_name(name)}
        for unit in loaded() - self._units - scopes.keys():
            prefixes = [f"machine-{names.escape(name)}" for name in outcome.services]
            if not any(unit.startswith((f"{prefix}-", f"{prefix}.s")) for prefix in prefixes):
                yield f"{unit} is there, and nobody may have made it: {outcome}"
        records = {name for name in os.listdir(RECORDS) if not name.startswith(".")}
        if strange := records - outcome.owners.keys() - {PROBE}:
            yield f"records of {strange}, which nobody may have made"
        directories = set(os.listdir(DIRECTORIES)) if DIRECTORIES.exists() else set[str]()
        if strange := directories - {names.directory_name(name) for name in outcome.services}:
            yield f"directories of {strange}, which nobody may have made"

    def _of_processes(self, outcome: Outcome, leaders: Leaders) -> Iterator[str]:
        for leader in leaders.all:
            now = group_of(leader.pid)
            if leader.pid not in outcome.touched and now != leaders.before[leader.pid]:
                yield f"{leader} is in {now}, was in {leaders.before[leader.pid]}, and nobody may have done that"
        known = {leader.pid for leader in leaders.all} | {self._canaries.pid, self._kept.pid}
        for unit, pid in processes_of_machines():
            if pid in known or unit in self._units:
                continue
            uids = self._uids(unit, outcome)
            if not (found := uids_of(pid)) <= uids:
                yield f"process {pid} in {unit} runs as {found}: {outcome}"
        ordinary = {mark_of(user) for user in USERS if user not in {ROOT, "holder"}}
        for pid, arguments in commands():
            if arguments[1:2] == ["infinity"] and ordinary & {*arguments[2:]}:
                yield f"process {pid} is a helper of somebody who may have none: {arguments}"

    @staticmethod
    def _uids(unit: str, outcome: Outcome) -> set[int]:
        """The uids that processes of a unit may have."""
        for name, owners in outcome.owners.items():
            if unit == (UnitNames(name).scope if names.is_machine_name(name) else None):
                return set(UIDS.values()) if owners & {ROOT, "holder"} else {UIDS[owner] for owner in owners}
        found: set[int] = set()
        for name, uids in outcome.services.items():
            prefix = f"machine-{names.escape(name)}"
            if unit.startswith(f"{prefix}--"):  # our own, which have the rights of the manager
                found.add(0)
            if unit.startswith((f"{prefix}-", f"{prefix}.s")):
                found |= uids
        return found

    def _reload(self) -> None:
        """Have the manager read its own files: nothing may be another thing than before."""
        before = show(sorted(loaded()))
        run("systemctl", "daemon-reload")
        after = show(sorted(loaded()))
        # But for what has ended, or begun again, meanwhile.
        same = {
            unit: was
            for unit, was in before.items()
            if all(was.get(name) == after.get(unit, {}).get(name) for name in ("InvocationID", "SubState"))
        }
        changed = [*changes(same, after)]
        assert not changed, f"after a daemon-reload: {changed}"

    def _put_back(self, outcome: Outcome, leaders: Leaders) -> None:
        """Stop what there is, and forget all of it."""
        for name, machine in self._machines().items():
            if name != KEPT and machine["unit"] == UnitNames(name).scope:
                self.root("Stop", {"name": name, "timeoutUSec": round(ROOT_SECONDS * 1e6)})
        for name in filter(names.is_machine_name, {*outcome.owners, PROBE} - {KEPT}):
            self.root("Forget", {"name": name})
        lost = self._users.lost()
        assert lost <= outcome.sessions, f"sessions of {lost} have ended, and nobody may have done that"
        leaders.bury()  # some are in scopes that root told the manager not to kill
        if left := loaded() - self._units:
            # Of machines that were forgotten.
            subprocess.run(["systemctl", "stop", *left], check=False, capture_output=True)
            subprocess.run(["systemctl", "reset-failed", *left], check=False, capture_output=True)
        until(lambda: loaded() == self._units, lambda: f"left: {loaded() ^ self._units}")
        until(
            lambda: set(os.listdir(RECORDS)) - {NOTE + KEPT} == {KEPT},
            lambda: f"records: {os.listdir(RECORDS)}",
        )
        until(lambda: os.listdir(DIRECTORIES) == [KEPT], lambda: f"directories: {os.listdir(DIRECTORIES)}")

    def look(self) -> None:
        """See that the service has met no bug of its own."""
        run("journalctl", "--sync")
        of_service = (
            "--unit=moored.service",
            f"--after-cursor={self._cursor}",
            "--output=cat",
            "--no-pager",
        )
        logged = run("journalctl", *of_service)
        assert "Traceback" not in logged, logged


def main() -> int:
    """Run; return the exit status: 1 where something was found."""
    seconds, seed, first = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    good = True
    rounds = 0
    with Boundary() as boundary:
        end = time.monotonic() + seconds
        while good and time.monotonic() < end:
            number = first + rounds
            rounds += 1
            try:
                boundary.round(seed, number)
            except Exception:  # noqa: BLE001 - whatever a round has done is what we are here for
                good = False
                print(f"boundary, seed {seed}, round {number} (--first={number} begins there):")
                print(traceback.format_exc(), flush=True)
        told = ", ".join(f"{count} {what}" for what, count in boundary.outcomes.most_common())
        print(f"boundary: {boundary.outcomes.total()} inputs in {rounds} rounds: {told}", flush=True)
        if good:
            boundary.look()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
