"""`streamdet keys`: who may do what. `new` makes a secret; `list`, `allow` and `revoke` keep the clients file."""

import secrets
import shlex
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from streamdet import keys
from streamdet.cli.options import AsJson, ConfigFile, Settings, read_config
from streamdet.errors import StreamdetError, UsageError
from streamdet.keys import ROLES, Identity

ClientsFile = Annotated[
    Path | None, typer.Option("--clients", help="The clients file; without one, the config's security.clients.")
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="What the client is called in the file and in the log.")]


def group() -> typer.Typer:
    """Build the group."""
    app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Say who may do what.")
    app.callback()(_keys)
    app.command("new")(new)
    app.command("list")(list_)
    app.command("allow")(allow)
    app.command("revoke")(revoke)
    return app


def _keys() -> None:
    """Say who may do what."""


def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the secret goes; nothing may be there yet.")],
    server: Annotated[bool, typer.Option("--server", help="Make the daemon's key.")] = False,
    daemon: Annotated[
        str | None, typer.Option("--for", metavar="KEY", help="The daemon's public key; without one, the config's.")
    ] = None,
    token: Annotated[bool, typer.Option("--token", help="Make a token too, for HTTP and raw PCM.")] = False,
    config: ConfigFile = None,
    set_: Settings = None,
) -> None:
    """Make a client's identity, or the daemon's key, in a file of mode 0600; its public half goes to stdout."""
    if server and (daemon or token):
        raise UsageError.of("--server", True, "without --for and --token, which are a client's")
    if daemon is not None and not keys.is_key(daemon):
        raise UsageError.of("--for", daemon, "a public key: 40 characters of Z85")
    if not server and daemon is None:
        daemon = _own_key(config, set_)
    identity = Identity.new(server=daemon, token=secrets.token_urlsafe(keys.TOKEN_BYTES) if token else None)
    identity.write(file)
    typer.echo(identity.public)
    typer.echo(_next_steps(identity, file, server=server), err=True)


def list_(clients: ClientsFile = None, json: AsJson = False, config: ConfigFile = None, set_: Settings = None) -> None:
    """List the clients and what they may do."""
    known = keys.read_clients(_clients_file(clients, config, set_))
    if json:
        for name, client in known.items():
            typer.echo(msgspec.json.encode({"name": name, **client.model_dump()}).decode())
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("client")
    table.add_column("may")
    table.add_column("key", no_wrap=True)
    table.add_column("token")
    for name, client in known.items():
        table.add_row(name, ", ".join(client.roles), client.curve or "–", "yes" if client.token_sha256 else "–")
    Console(highlight=False, markup=False).print(table)


def allow(
    name: Name,
    role: Annotated[list[str], typer.Option("--role", help="send, read or control; may be repeated.")],
    curve: Annotated[str | None, typer.Option("--curve", metavar="KEY", help="Its public key.")] = None,
    token_sha256: Annotated[
        str | None, typer.Option("--token-sha256", metavar="HEX", help="The SHA-256 of its token.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Take both from its identity file.")
    ] = None,
    clients: ClientsFile = None,
    config: ConfigFile = None,
    set_: Settings = None,
) -> None:
    """Add a client to the clients file; a running daemon lets it in within a second."""
    if source is not None:
        identity = Identity.read(source)
        curve = curve or identity.public
        token_sha256 = token_sha256 or (identity.token and keys.token_sha256(identity.token))
    client = keys.client(tuple(dict.fromkeys(role)), curve, token_sha256)
    keys.allow(_clients_file(clients, config, set_), name, client)


def revoke(
    names: Annotated[list[str], typer.Argument(metavar="NAMES", help="Who may do nothing any more.")],
    clients: ClientsFile = None,
    config: ConfigFile = None,
    set_: Settings = None,
) -> None:
    """Take clients out of the clients file; a running daemon cuts them off within a second."""
    path = _clients_file(clients, config, set_)
    for name in names:
        keys.revoke(path, name)


def _clients_file(given: Path | None, config: Path | None, set_: list[str] | None) -> Path:
    path = given or read_config(config, set_).security.clients
    if path is None:
        raise UsageError.of("--clients", None, "a file, here or as security.clients in the config")
    return path


def _own_key(config: Path | None, set_: list[str] | None) -> str | None:
    """The public key of the daemon on this machine, where we may read it."""
    path = read_config(config, set_).security.server_key
    if path is None:
        return None
    try:
        return Identity.read(path).public
    except (StreamdetError, PermissionError):
        return None


def _next_steps(identity: Identity, file: Path, *, server: bool) -> str:
    if server:
        return f"{file}: the daemon's key (security.server_key). Its public key, above, is what clients need (--for)."
    words = ["streamdet", "keys", "allow", "NAME", *(f"--role={role}" for role in ROLES), f"--curve={identity.public}"]
    if identity.token is not None:
        words += [f"--token-sha256={keys.token_sha256(identity.token)}"]
    lines = [f"{file}: a client's identity. Allow it, where the daemon runs, with the roles that it needs:"]
    lines += [f"  {shlex.join(words)}"]
    if identity.server is None:
        lines += ['It names no daemon yet, and ZeroMQ needs one: make it with --for KEY, or add server = "KEY".']
    return "\n".join(lines)
