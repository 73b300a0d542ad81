"""What the documents show at a prompt works as it is typed."""

import re

import pytest
from sandboxes import CHECKOUT, Sandbox

README = (CHECKOUT / "README.md").read_text()
LAUNCHERS = (CHECKOUT / "docs" / "launchers.md").read_text()

SECTIONS = (
    "A machine, with varlinkctl",
    "Services for one machine: by its scope's name",
    "The same, with moorctl",
)
"""Sections of docs/launchers.md, in an order in which each finds what it is about."""


def blocks(document: str, section: str) -> list[str]:
    """Return the indented blocks of a section, without their indentation."""
    text = document.split(f"\n## {section}\n")[1].split("\n## ", maxsplit=1)[0]
    found = re.findall(r"(?:^(?: {4}.*)?\n)+", text, re.MULTILINE)
    return [
        re.sub(r"^ {4}", "", block, flags=re.MULTILINE).strip("\n") + "\n"
        for block in found
        if block.strip()
    ]


def commands(document: str, section: str) -> str:
    """Return the commands of a section, which are shown with a prompt, as a script."""
    shown = [
        re.sub(r"^# ", "", block, flags=re.MULTILINE)
        for block in blocks(document, section)
        if block.startswith("# ")
    ]
    assert shown, section
    return "".join(shown)


def run(sandbox: Sandbox, script: str) -> str:
    """Run a script, of which every command must succeed, and return its output."""
    done = sandbox.run(["bash", "-euxo", "pipefail"], input=script, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("name", ["web", "web-1"])
def test_the_commands_for_launchers_do_what_is_said(sandbox: Sandbox, name: str) -> None:
    varlinkctl, services, moorctl = (commands(LAUNCHERS, section) for section in SECTIONS)
    register, *rest = moorctl.splitlines(keepends=True)
    services, count = re.subn(r"^ +virtiofsd .*$", "      sleep infinity", services, flags=re.MULTILINE)
    assert count == 1  # the image has no virtiofsd
    # All that the commands leave in the background goes with the machine, or with the scope of the script.
    script = "\n".join([
        varlinkctl, register, services,
        'test "$(systemctl is-active web-virtiofsd)" = active', *rest,
        "for try in $(seq 200); do systemctl --quiet is-active web-virtiofsd || exit 0; sleep 0.05; done; exit 1",
    ])  # fmt: skip
    run(sandbox, re.sub(r"\bweb\b", name, script))


WAIT_FOR_WEB = "for try in $(seq 200); do moorctl status web && break; sleep 0.05; done >/dev/null 2>&1\n"


def test_the_two_minutes_of_the_readme(sandbox: Sandbox) -> None:
    first, *rest = commands(README, "Two minutes").split("\nmoorctl list\n", 1)
    alone, _ = rest[0].split(
        "moorctl check", 1
    )  # the rest needs QEMU: tests of the examples run those files
    shown = run(sandbox, f"{first}\n{WAIT_FOR_WEB}moorctl list\n{alone}")
    assert "machine-web.scope" in shown
    assert "web" not in run(sandbox, "moorctl list")


def test_the_launcher_of_the_readme(sandbox: Sandbox) -> None:
    python, shell = blocks(README, "From your launcher")
    program, count = re.subn(r'"600"', '"1"', python)
    assert count == 1
    assert run(sandbox, f"python3 - <<'END'\n{program}END\n") == "machine-web.scope\n0\n"
    registered = run(sandbox, re.sub("^# ", "", shell, flags=re.MULTILINE) + "moorctl stop db\n")
    assert "machine-db.scope" in registered
