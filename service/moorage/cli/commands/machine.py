"""Options that describe a machine, for the commands that register one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, Literal

import click

from moorage.cli.address import Address
from moorage.cli.commands.options import ANSWER_SECONDS, SERVICE_SECONDS, F, finite_span, parsed


def _complete_slice(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """Append ".slice" where it is missing, as systemd-run(1) does."""
    return value if value is None or "." in value else f"{value}.slice"


_OPTIONS: Final = (
    click.option(
        "--class",
        "class_",
        type=click.Choice(["vm", "container"]),
        default="vm",
        show_default=True,
        help="What kind of machine it is.",
    ),
    click.option(
        "--slice",
        "slice_",
        metavar="SLICE",
        callback=_complete_slice,
        help="Slice to put the scope in.  [default: slice of moored.conf(5), machine.slice]",
    ),
    click.option("--description", metavar="TEXT", help="Description of the scope."),
    click.option(
        "-p",
        "--property",
        "properties",
        metavar="NAME=VALUE",
        multiple=True,
        help="Property of the scope, written as for systemd-run(1), such as MemoryMax=2G. May be repeated.",
    ),
    click.option(
        "--slice-property",
        "slice_properties",
        metavar="NAME=VALUE",
        multiple=True,
        help="Property of a slice for the scope and all helpers, which is created below SLICE. May be repeated.",
    ),
    click.option("--service", metavar="TEXT", help="What registers it, such as the name of the VMM."),
    click.option("--id", "id_", metavar="ID128", help="ID of the machine: 32 hexadecimal digits."),
    click.option("--root-directory", metavar="PATH", help="Root directory of the machine on the host."),
    click.option("--vsock-cid", type=click.IntRange(min=0), metavar="CID", help="AF_VSOCK address."),
    click.option("--ssh-address", metavar="ADDRESS", help="Address for ssh(1)."),
    click.option("--ssh-private-key-path", metavar="PATH", help="Private key for ssh(1)."),
    click.option("--control-address", metavar="ADDRESS", help="Control socket of the VMM."),
    click.option(
        "--if-index",
        "if_indices",
        type=click.IntRange(min=1),
        metavar="INDEX",
        multiple=True,
        help="Network interface of the host that belongs to the machine. May be repeated.",
    ),
    click.option("--dry-run", is_flag=True, help="Check everything, register nothing."),
    click.option(
        "--timeout",
        callback=parsed(finite_span),
        metavar="SPAN",
        help="How long registering may take.  [default: registerTimeout of moored.conf(5), 30s]",
    ),
)


def describing(command: F) -> F:
    """Add the options that :func:`registration` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def registration(
    address: Address,
    name: str,
    *,
    class_: str,
    slice_: str | None,
    description: str | None,
    properties: Sequence[str],
    slice_properties: Sequence[str],
    service: str | None,
    id_: str | None,
    root_directory: str | None,
    vsock_cid: int | None,
    ssh_address: str | None,
    ssh_private_key_path: str | None,
    control_address: str | None,
    if_indices: Sequence[int],
    dry_run: bool,
    timeout: int | None,
) -> dict[str, Any]:
    """Return the parameters of Register, without the leader.

    Raises:
        click.BadParameter: a property does not exist, or its value cannot be converted.
        Failure: the service did not describe its properties.
    """
    return {
        "name": name,
        "class": class_,
        "id": id_,
        "service": service,
        "rootDirectory": root_directory,
        "ifIndices": list(if_indices) or None,
        "vSockCid": vsock_cid,
        "sshAddress": ssh_address,
        "sshPrivateKeyPath": ssh_private_key_path,
        "controlAddress": control_address,
        "slice": slice_,
        "description": description,
        "properties": converted(address, "--property", "scope", properties),
        "sliceProperties": converted(address, "--slice-property", "slice", slice_properties),
        "dryRun": dry_run or None,
        "timeoutUSec": timeout,
    }


def converted(
    address: Address, option: str, unit_type: Literal["scope", "service", "slice"], properties: Sequence[str]
) -> dict[str, Any] | None:
    """Return properties that were given as in a unit file, as the service takes them; None for none.

    Args:
        address: of the service, which says which properties there are.
        option: that they were given with, for errors.
        unit_type: of what they are.
        properties: each as NAME=VALUE.

    Raises:
        click.BadParameter: a property does not exist, or its value cannot be converted.
        Failure: the service did not describe its properties.
    """
    if not properties:
        return None
    from moorage.cli import service
    from moorage.cli.properties.assignments import NoSuchProperty, convert, converter_of

    try:
        return convert(properties, service.signatures(address, unit_type))
    except NoSuchProperty as error:
        text = str(error)
        with suppress(NoSuchProperty):
            converter_of(error.name, service.signatures(address, "service"))
            text = f"a {unit_type} has no property {error.name}: only services have it, such as helpers"
        raise click.BadParameter(text, param_hint=f"'{option}'") from None
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=f"'{option}'") from None


def register_seconds(timeout: int | None) -> float:
    """Return how long to wait for the reply of Register.

    Args:
        timeout: of the registration, in µs; None for the service's default.
    """
    return (SERVICE_SECONDS if timeout is None else timeout / 1e6) + ANSWER_SECONDS
