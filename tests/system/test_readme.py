"""What the README shows at a prompt works as it is typed."""

import re

import pytest
from sandboxes import CHECKOUT, Sandbox

README = (CHECKOUT / "README.md").read_text()

SECTIONS = (
    "A machine, with varlinkctl",
    "Services for one machine: by its scope's name",
    "The same, with moorctl",
)
"""In an order in which each finds what it speaks of."""


def commands(section: str) -> str:
    """The commands of a section, as a script."""
    text = README.split(f"\n## {section}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"(?:^ {4}.*\n)+", text, re.MULTILINE)
    shown = [
        re.sub(r"^ {4}(?:# )?", "", block, flags=re.MULTILINE)
        for block in blocks
        if block.startswith("    # ")
    ]
    assert shown, section
    return "".join(shown)


@pytest.mark.parametrize("name", ["web", "web-1"])
def test_the_commands_do_what_is_said(sandbox: Sandbox, name: str) -> None:
    varlinkctl, services, moorctl = map(commands, SECTIONS)
    register, *rest = moorctl.splitlines(keepends=True)
    services, count = re.subn(r"^ +virtiofsd .*$", "      sleep infinity", services, flags=re.MULTILINE)
    assert count == 1  # the image has no virtiofsd
    # All that the commands leave in the background goes with the machine, or with the scope of the script.
    script = "\n".join([
        varlinkctl, register, services,
        'test "$(systemctl is-active web-virtiofsd)" = active', *rest,
        "for try in $(seq 200); do systemctl --quiet is-active web-virtiofsd || exit 0; sleep 0.05; done; exit 1",
    ])  # fmt: skip
    script = re.sub(r"\bweb\b", name, script)
    done = sandbox.run(["bash", "-euxo", "pipefail"], input=script, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
