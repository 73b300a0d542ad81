"""The completions, in the shells that they are for, from where the packages install them."""

from collections.abc import Callable

import pytest
from sandboxes import SHELLS_AND_SSH, Sandbox

# As tools/packaging/debian/rules installs them.
INSTALL = """
cd /usr/share
mkdir -p bash-completion/completions zsh/vendor-completions fish/vendor_completions.d
moorctl completion bash >bash-completion/completions/moorctl
moorctl completion zsh >zsh/vendor-completions/_moorctl
moorctl completion fish >fish/vendor_completions.d/moorctl.fish
systemctl start moored.socket
"""

START = "sleep infinity >/dev/null 2>&1 & moorctl register completed-machine --leader $!"

# Types half a name, has the shell complete it, and then enters the line.
TYPE = """
import os, pty, select, sys, time
prepare, *shell = sys.argv[1:]
pid, fd = pty.fork()
if pid == 0:
    os.environ["TERM"] = "dumb"
    os.execvp(shell[0], shell)
told = b""
def hear(word):
    global told
    end = time.monotonic() + 30
    while word not in told:
        if not select.select([fd], [], [], max(0, end - time.monotonic()))[0]:
            sys.exit(f"no {word}: {told}")
        told += os.read(fd, 4096)
    told = b""
os.write(fd, prepare.encode() + b"; echo rea''dy\\n")
hear(b"ready")
os.write(fd, b"moorctl stop comple\\t")
hear(b"ted-machine")
os.write(fd, b"; exit\\n")
try:
    while os.read(fd, 4096):
        pass
except OSError:
    pass
os.waitpid(pid, 0)
"""

SHELLS = {
    "bash": (". /usr/share/bash-completion/bash_completion", "bash", "--norc", "-i"),
    "zsh": ("autoload -U compinit; compinit -u -D", "zsh", "-f", "-i"),
}


@pytest.mark.parametrize("suite", ["forky"])
def test_names_of_machines_are_completed(boot: Callable[..., Sandbox]) -> None:
    sandbox = boot("--packages", SHELLS_AND_SSH)
    sandbox.run(["bash", "-euc", INSTALL])
    for shell, words in SHELLS.items():
        sandbox.run(["sh", "-c", START])
        sandbox.run(["python3", "-c", TYPE, *words])
        assert sandbox.run(["moorctl", "list", "--no-legend"]).stdout == "", shell
    # fish says what it would complete; with what each of it is.
    sandbox.run(["sh", "-c", START])
    told = sandbox.run(["fish", "-c", "complete --do-complete 'moorctl stop comple'"]).stdout
    assert told.split() == ["completed-machine", "machine-completed\\x2dmachine.scope"]
    told = sandbox.run(["fish", "-c", "complete --do-complete 'moorctl --'"]).stdout
    assert "--host" in told
