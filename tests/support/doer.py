"""A process that a test has open files, send packets and attach programs, and that says what came of it."""

import subprocess
import sys

from moored import Process, Processes

_SCRIPT = """
import ctypes, errno, os, socket, struct, sys

HOW = {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}
ATTACH, LOAD = 8, 5  # BPF_PROG_ATTACH, BPF_PROG_LOAD
EGRESS, SKB, MULTI = 1, 8, 2  # BPF_CGROUP_INET_EGRESS, BPF_PROG_TYPE_CGROUP_SKB, BPF_F_ALLOW_MULTI

def open_(path, how):
    os.close(os.open(path, HOW[how] | os.O_NOCTTY | os.O_NONBLOCK))

def send(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as one, socket.socket(family, socket.SOCK_DGRAM) as other:
        one.bind((address, 0))  # else it would be that of the interface
        other.bind((address, 0))
        other.settimeout(5)
        one.sendto(bytes(100), other.getsockname())
        other.recv(200)

def bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes.ljust(128, b"\\0"))
    found = ctypes.CDLL(None, use_errno=True).syscall(321, command, buffer, 128)
    if found < 0:
        raise OSError(ctypes.get_errno(), "bpf")
    return found

def deny(subgroup):
    "Move to a group below, of which no packet leaves."
    own = open("/proc/self/cgroup").read().rpartition("0::")[2].strip()
    path = f"/sys/fs/cgroup{own}/{subgroup}"
    os.mkdir(path)
    with open(f"{path}/cgroup.procs", "w") as file:
        file.write("0")
    code = ctypes.create_string_buffer(struct.pack("<BBhiBBhi", 0xb7, 0, 0, 0, 0x95, 0, 0, 0), 16)  # return 0
    name = ctypes.create_string_buffer(b"GPL")
    program = bpf(LOAD, struct.pack("IIQQ", SKB, 2, ctypes.addressof(code), ctypes.addressof(name)))
    directory = os.open(path, os.O_RDONLY)
    bpf(ATTACH, struct.pack("IIII", directory, program, EGRESS, MULTI))

for line in sys.stdin:
    word, *arguments = line.split()
    try:
        {"open": open_, "send": send, "deny": deny}[word](*arguments)
    except TimeoutError:
        print("timeout", flush=True)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
    else:
        print("ok", flush=True)
"""


def doer(spawn: Processes, *, user: int | None = None) -> Process:
    """Start one."""
    return spawn((sys.executable, "-c", _SCRIPT), stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=user)


def does(process: Process, *words: str) -> str:
    """Have it do something; return "ok", or the name of the error.

    - ``open PATH r|w|rw``
    - ``send ADDRESS``: a datagram to itself
    - ``deny NAME``: enter a new control group below its own, with a program of its own that lets no packet out
    """
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(" ".join(words).encode() + b"\n")
    process.stdin.flush()
    return process.stdout.readline().decode().strip()
