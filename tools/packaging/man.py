"""Writes the man pages: reStructuredText from docs/man, with what the programs themselves know filled in.

    python3 tools/packaging/man.py DIRECTORY

moorctl(1) has its commands and options from click, moored(8) and moorage-exporter(8) theirs from argparse,
moored.conf(5) those of the configuration, and io.moorage.Machine(7) is the interface file, whose comments are its
documentation.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click

CHECKOUT = Path(__file__).resolve().parents[2]
SOURCES = CHECKOUT / "docs" / "man"
INTERFACE = CHECKOUT / "interfaces" / "io.moorage.Machine.varlink"

SHARED = (
    "--help",
    "--user",
    "--host",
    "--address",
    "--no-ask-password",
    "--no-pager",
    "--quiet",
    "--json",
    "--version",
)
"""Options that the commands have in common are described once."""


def escaped(text: str) -> str:
    """Escape what reStructuredText would interpret."""
    return re.sub(r"([\\*`|_])", r"\\\1", text)


def indented(text: str) -> str:
    """Indent a paragraph as the body of a definition."""
    return "".join(f"    {line}\n" if line.strip() else "\n" for line in text.splitlines())


def paragraphs(text: str) -> str:
    """Return a help text of click's with each paragraph on a line of its own."""
    return "\n\n".join(" ".join(part.split()) for part in text.replace("\b", "").split("\n\n"))


def commands(group: click.Group) -> Iterator[str]:
    """Return the sections of moorctl's commands, and of the options that they share."""
    context = click.Context(group, info_name="moorctl")
    shared: dict[str, str] = {}
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context)
        usage = " ".join(command.collect_usage_pieces(inner))
        title = escaped(f"{name} {usage}")
        yield f"{title}\n{'-' * len(title)}\n"
        yield escaped(paragraphs(command.help or "")) + "\n"
        if command.epilog:
            title, *example = command.epilog.removeprefix("\b\n").splitlines()
            yield f"{title}:\n\n" + "".join(f"    {line.strip()}\n" for line in example)
        for parameter in command.params:
            record = parameter.get_help_record(inner)
            if record is None or not record[1]:
                continue  # an argument, which the usage shows
            flags, text = record
            entry = f"{escaped(flags)}\n{indented(escaped(' '.join(text.split())))}"
            if any(option in SHARED for option in parameter.opts):
                shared[flags] = entry
            else:
                yield entry
    yield "Options of all commands\n=======================\n"
    yield from shared.values()


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Return the options of a daemon."""
    for action in parser._actions:  # noqa: SLF001  # there is no public way to iterate over them
        value = "" if action.nargs == 0 else f" {action.metavar or '|'.join(map(str, action.choices or ()))}"
        text = (action.help or "") % {"default": action.default, "prog": parser.prog}
        yield f"{escaped(', '.join(action.option_strings) + value)}\n{indented(escaped(text))}"


def settings() -> Iterator[str]:
    """Return the options of the configuration file."""
    from moorage.configuration.options import OPTIONS, name_of, written
    from moorage.configuration.settings import Settings

    for field, option in OPTIONS.items():
        later = " In force after a restart of the service." if option.at_restart else ""
        text = f"{option.about} Values: {option.kind}. Default: {written(Settings(), field)}.{later}"
        yield f"{name_of(field)}\n{indented(escaped(text))}"


def interface() -> str:
    """Return io.moorage.Machine(7): every definition of the interface file, with its comment."""
    preamble, *definitions = re.split(r"\n\n(?=(?:#.*\n)*(?:type|method|error) )", INTERFACE.read_text())
    title = "io.moorage.Machine"
    summary = preamble.splitlines()[0].removeprefix("# ").rstrip(".").lower()
    lines = [
        f"{'=' * len(title)}\n{title}\n{'=' * len(title)}\n",
        f"{'-' * len(summary)}\n{escaped(summary)}\n{'-' * len(summary)}\n",
        ":Manual section: 7\n:Manual group: moorage\n",
        "Description\n===========\n",
        "A varlink interface, which moored(8) serves. Fields with a question mark may be left out.\n",
    ]
    sections: dict[str, list[str]] = {"method": [], "error": [], "type": []}
    for definition in definitions:
        match = re.match(r"(?P<comment>(?:#.*\n)*)(?P<text>(?P<kind>\w+) (?P<name>\w+)[\s\S]*)", definition)
        assert match is not None, definition
        comment = " ".join(line.removeprefix("#").strip() for line in match["comment"].splitlines())
        title = match["name"]
        sections[match["kind"]].append(
            f"{title}\n{'-' * len(title)}\n\n{escaped(comment)}\n\n::\n\n{indented(match['text'].rstrip())}\n"
        )
    for kind, heading in (("method", "Methods"), ("error", "Errors"), ("type", "Types")):
        lines += [f"{heading}\n{'=' * len(heading)}\n", *sections[kind]]
    lines.append("See also\n========\n\nmoored(8), moorctl(1), varlinkctl(1)\n")
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """Return the source of each man page by its file name, such as moored.8."""
    from moorage.cli import commands as cli
    from moorage.command_line import parser
    from moorage.exporter.options import parser as exporter

    found = {path.stem: path.read_text() for path in sorted(SOURCES.glob("*.rst"))}
    found["moorctl.1"] = found["moorctl.1"].replace(".. commands::\n", "\n".join(commands(cli.moorctl)))
    found["moored.8"] = found["moored.8"].replace(".. options::\n", "\n".join(options(parser())))
    page = found["moorage-exporter.8"]
    found["moorage-exporter.8"] = page.replace(".. options::\n", "\n".join(options(exporter())))
    found["moored.conf.5"] = found["moored.conf.5"].replace(".. settings::\n", "\n".join(settings()))
    found["io.moorage.Machine.7"] = interface()
    return found


def main(directory: str) -> None:
    """Write all man pages into a directory."""
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        source = target / f"{name}.rst"
        source.write_text(text)
        # A warning of docutils is a mistake in a page.
        subprocess.run(
            [sys.executable, "-m", "docutils", "--writer=manpage", "--halt=warning", source, target / name],
            check=True,
        )
        source.unlink()


if __name__ == "__main__":
    main(sys.argv[1])
