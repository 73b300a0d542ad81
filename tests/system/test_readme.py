"""What the documents show at a prompt works as it is typed, with the packages installed and no checkout."""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pytest
from debian_packages import DOCUMENTS, script
from sandboxes import CHECKOUT, Sandbox

pytestmark = pytest.mark.xdist_group("packages")  # or each worker builds them

README = "README.md"
LAUNCHERS = "docs/launchers.md"
MACHINES = "docs/running-machines.md"

PAGES = {
    path.relative_to(CHECKOUT).as_posix(): path.read_text()
    for path in (
        CHECKOUT / README,
        *(CHECKOUT / "docs").glob("*.md"),
        *(CHECKOUT / "docs/man").glob("*.rst"),
    )
}

# Not by its status, which an earlier machine of that name has too.
UNTIL_WEB_IS_THERE = "for try in $(seq 200); do moorctl list | grep -q '^web ' && break; sleep 0.05; done\n"

# Something of its own for each scene, that listens to what a container is sent, and has a helper.
WEB = r"""
systemd-run --quiet --collect --unit=launcher moorctl run --name web --class container \
    --helper 'fs=/usr/bin/sleep infinity' -- \
    bash -c 'trap : INT RTMIN+4; touch /run/listens; while :; do sleep 0.1; done'
until [ -e /run/listens ]; do sleep 0.05; done
rm /run/listens
"""

WEB_ENDS = "moorctl stop web\n"


class Scene(NamedTuple):
    """Commands of a section, and what they need.

    Attributes:
        page: path of the document.
        section: heading; empty for what is before the first one.
        before: script that prepares.
        after: script that checks, and cleans up.
        instead: what is not at hand, as a pattern, and what stands in for it.
        shows: words of the output.
    """

    page: str
    section: str
    before: str = ""
    after: str = ""
    instead: Mapping[str, str] = {}
    shows: str = ""


SCENES = (
    Scene(
        README, "Two minutes",
        # The rest needs QEMU: tests of the examples run those files.
        instead={r"(sleep 600 &\n)": rf"\1{UNTIL_WEB_IS_THERE}", r"(moorctl check \S+)": r"\1 --offline",
                 r"moorctl run --name vm1 .*\n": ""},
        shows="machine-web.scope",
    ),
    Scene(
        "docs/configuration.md", "",
        "mkdir -p /etc/moorage; echo 'machinesMax = 20000' >/etc/moorage/moored.conf; moorctl config >/dev/null\n",
        "rm /etc/moorage/moored.conf; systemctl reload moored\n", shows="20000",
    ),
    Scene(
        "docs/events.md", "",
        # It goes on for ever.
        """varlinkctl() {
            command varlinkctl "$@" >/run/told & until grep -q snapshotDone /run/told; do sleep 0.05; done
            kill $!; cat /run/told
        }
        """,
        shows="snapshotDone",
    ),
    Scene(
        "docs/in-place-of-machined.md", "", "",
        """machinectl list >/dev/null 2>&1 || true
        varlinkctl info /run/systemd/machine/io.systemd.Machine
        moorctl in-place off
        """,
        shows="io.systemd.Machine",
    ),
    Scene(
        "docs/metrics.md", "", "moorctl list\n",
        instead={r"/usr/lib/systemd/systemd-report .*\n": ""},  # a package of its own, and run by test_exporter.py
        shows="io.moorage.Machine.Connections",
    ),
    Scene(
        MACHINES, "What it uses", WEB, WEB_ENDS,
        # These go on for ever.
        {r"(moorctl log web --follow)": r"timeout 2 \1 || [ $? = 124 ]", r"(moorctl top)\n": r"\1 --iterations=1\n",
         r"(moorctl top --sort=.*)": r"\1 --iterations=1"},
        "machine-web.scope",
    ),
    Scene(MACHINES, "Limits", WEB, WEB_ENDS),
    Scene(MACHINES, "Powering off", WEB, WEB_ENDS),
    Scene(MACHINES, "Freezing", WEB, WEB_ENDS, shows="frozen"),
    Scene(
        "docs/man/moorctl.1.rst", "Examples", "sleep infinity & PID=$!\n", "moorctl stop web; echo $scope\n",
        {r"qemu-system-x86_64 \.\.\.": "sh -c 'touch /run/runs; exec sleep infinity' &\n"
                                      "until [ -e /run/runs ]; do sleep 0.05; done; rm /run/runs\n"},
        "machine-web.scope",
    ),
)  # fmt: skip

ELSEWHERE = {
    (README, "Install"): "test_packages.py",
    (README, "From your launcher"): "test_the_launcher_of_the_readme",
    (LAUNCHERS, "A machine, with varlinkctl"): "test_the_commands_for_launchers_do_what_is_said",
    (LAUNCHERS, "The same, with moorctl"): "test_the_commands_for_launchers_do_what_is_said",
    (
        LAUNCHERS,
        "Services for one machine: by its scope's name",
    ): "test_the_commands_for_launchers_do_what_is_said",
    (LAUNCHERS, "A whole launcher in one line"): "test_examples.py",
    (MACHINES, "On other hosts"): "test_hosts.py",
    (MACHINES, "Telling the launcher first"): "inside/test_stop_command.py",
    (MACHINES, "Inside a machine"): "inside/test_machined_inside.py",
    (MACHINES, "A socket for each machine"): "inside/test_place.py",
    ("docs/metrics.md", "Prometheus"): "test_exporter.py",
    ("docs/beside-machined.md", "Adopted"): "inside/test_beside.py",
    ("docs/podman.md", "Install"): "inside/foreign/test_podman.py",
}
"""Sections whose commands another test runs."""


def sections(page: str) -> dict[str, str]:
    """Return the sections of a page by their headings; that of what is before the first one is empty."""
    heading = r"^(.+)\n=+$" if page.endswith(".rst") else r"^## (.+)$"
    first, *rest = re.split(heading, PAGES[page], flags=re.MULTILINE)
    return {"": first, **dict(zip(rest[::2], rest[1::2], strict=True))}


def typed(page: str, text: str) -> Iterator[str]:
    """Return the commands of a section, each with its further lines; in a man page, those of the examples."""
    prompt = "    " if page.endswith(".rst") else "    # "
    command = ""
    for line in text.splitlines():
        if command:
            command += f"\n{line.removeprefix('    ')}"
        elif line.startswith(prompt):
            command = line.removeprefix(prompt)
        if command and not command.endswith("\\") and command.count("'") % 2 == 0:
            yield command
            command = ""
    assert not command, command


def has_commands(page: str, section: str, text: str) -> bool:
    if page.endswith(".rst"):
        return section == "Examples"
    return any(typed(page, text))


def commands(page: str, section: str) -> str:
    """Return the commands of a section as a script."""
    text = "".join(f"{command}\n" for command in typed(page, sections(page)[section]))
    assert text, (page, section)
    return text


def test_every_command_is_run_by_a_test() -> None:
    shown = {
        (page, section)
        for page in PAGES
        for section, text in sections(page).items()
        if has_commands(page, section, text)
    }
    assert shown == {(scene.page, scene.section) for scene in SCENES} | ELSEWHERE.keys()


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: f"{scene.page} {scene.section}".strip())
def test_commands_of_a_page(packaged: Sandbox, scene: Scene) -> None:
    text = commands(scene.page, scene.section)
    for pattern, replacement in scene.instead.items():
        text, count = re.subn(pattern, replacement, text)
        assert count == 1, pattern
    shown = script(packaged, f"set -x; cd {DOCUMENTS}\n{scene.before}{text}{scene.after}")
    assert scene.shows in shown
    assert script(packaged, "moorctl list --no-legend") == ""


def test_the_documents_are_where_the_first_of_them_says(packaged: Sandbox) -> None:
    text = script(packaged, f"cat {DOCUMENTS}/{README}")
    assert text == PAGES[README]
    named = {*re.findall(r"\]\(([^):]+)\)", text), *re.findall(r"examples/[\w./-]+", text)}
    assert len(named) > 10
    script(packaged, f"cd {DOCUMENTS}; ls {' '.join(sorted(named))}")
    # What a page says of others holds for those that are installed.
    for page in CHECKOUT.glob("docs/man/*.rst"):
        name, section = page.stem.rsplit(".", 1)
        if name != "moorage-exporter":
            script(packaged, f"ls /usr/share/man/man{section}/{name}.{section}.gz")


@pytest.mark.parametrize("name", ["web", "web-1"])
def test_the_commands_for_launchers_do_what_is_said(packaged: Sandbox, name: str) -> None:
    varlinkctl, services, moorctl = (
        commands(LAUNCHERS, section)
        for section in (
            "A machine, with varlinkctl",
            "Services for one machine: by its scope's name",
            "The same, with moorctl",
        )
    )
    register, *rest = moorctl.splitlines(keepends=True)
    services, count = re.subn(r"^ +virtiofsd .*$", "      sleep infinity", services, flags=re.MULTILINE)
    assert count == 1  # the image has no virtiofsd
    # All that the commands leave in the background goes with the machine, or with the scope of the script.
    text = "\n".join([
        varlinkctl, register, services,
        'test "$(systemctl is-active web-virtiofsd)" = active', *rest,
        "for try in $(seq 200); do systemctl --quiet is-active web-virtiofsd || exit 0; sleep 0.05; done; exit 1",
    ])  # fmt: skip
    script(packaged, re.sub(r"\bweb\b", name, text))


def test_the_launcher_of_the_readme(packaged: Sandbox) -> None:
    text, _ = sections(README)["From your launcher"].split("The same from a shell")
    program, count = re.subn(r'"600"', '"1"', "".join(re.findall(r"^ {4}(.*\n)", text, re.MULTILINE)))
    assert count == 1
    assert script(packaged, f"python3 - <<'END'\n{program}END\n") == "machine-web.scope\n0\n"
    shell = commands(README, "From your launcher")
    assert "machine-db.scope" in script(packaged, f"{shell}moorctl stop db\n")
