"""Recover all databases of a server that is lost, onto another one.

The roles come first. Each database is then restored by a process of its own, ``pgstash restore``,
which gives it its name only when it is complete.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pgstash import events
from pgstash.commands import origin
from pgstash.commands import recovery_results as results
from pgstash.commands.maintenance_database import MAINTENANCE
from pgstash.commands.recovery_choice import Chosen, Unusable, Wish, choose
from pgstash.commands.recovery_results import Report, Result
from pgstash.commands.source import target_password
from pgstash.commands.storage import open_storage
from pgstash.counting import counted
from pgstash.errors import ConfigurationError, TargetLostError
from pgstash.format.iso_time import iso
from pgstash.monitoring.messages import span
from pgstash.postgres.restore import logins, present, role_differences, server_roles
from pgstash.postgres.restore.present import Present
from pgstash.postgres.server import conninfo, disk_room, login
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.quoting import identifier
from pgstash.processes import own_commands
from pgstash.processes.children import Command, Ended
from pgstash.runtime import Runtime
from pgstash.settings import Settings, environment
from pgstash.settings.databases import OF_PROVIDERS

_OTHER_SESSIONS = 3  # of a restore, beyond RESTORE_JOBS
_URL_IN_FILE = "RESTORE_URL_FILE"  # RESTORE_URL takes its place


@dataclass(frozen=True, slots=True)
class Request:
    """What to recover, and how. ``origin`` is where to read from: see ``--from``.

    ``server`` is the lost one, if a configuration file describes several.
    """

    wish: Wish
    server: str | None = None
    origin: str | None = None
    parallel: int = 2
    skip_superuser_objects: bool = False
    dry_run: bool = False


def recover(settings: Settings, request: Request, runtime: Runtime) -> Report:
    """Recover what is stored, or find out in a dry run what would happen.

    A database that cannot be restored does not stop the others. Raises DatabaseError if the target
    cannot be reached, StorageError if the store cannot be listed, TargetLostError.
    """
    to_do: list[events.Warned] = []

    def emit(event: events.Event) -> None:
        if isinstance(event, events.Warned) and event.to_do:
            to_do.append(event)
        else:
            runtime.emit(event)

    try:
        found, roles_refused = _recover(settings, request, emit)
    except BaseException:
        for each in to_do:  # the roles stay
            runtime.emit(each)
        raise
    return Report(
        sorted(found, key=lambda each: each.database),
        [each.message for each in to_do],
        roles_refused,
    )


def _recover(
    settings: Settings, request: Request, emit: events.Emit
) -> tuple[list[Result], list[str]]:
    """Return the results, and the roles that cannot be created."""
    settings = of_server(settings, request.server)
    server = login.inspect(settings.target_url, target_password(settings))
    read = origin.readable(origin.of_copy(settings, request.origin), emit)
    found = choose(read, open_storage(read, emit), request.wish, emit)
    chosen = [each for each in found if isinstance(each, Chosen)]
    _report_times(chosen, emit)
    roles_refused = _roles(server, chosen, request, emit)
    there = present.on(server)
    ended = [results.unusable(each) for each in found if isinstance(each, Unusable)]
    open_ones: dict[str, Chosen] = {}
    for each in chosen:
        known = results.settled(each, there, any_time=request.wish.at is None)
        if known is None:
            open_ones[each.database] = each
        else:
            ended.append(known)
    for result in ended:
        results.report(result, emit)
    _warn_of_room(server, open_ones.values(), emit)
    # The largest first: no restore of hours begins when all others have ended.
    ordered = sorted(open_ones.values(), key=lambda each: -each.backup.size)
    commands = {each.database: _command(each, settings, request) for each in ordered}
    at_a_time = _at_a_time(there, settings, request, emit) if commands else 1
    with contextlib.closing(own_commands.run(commands, at_a_time, emit)) as runs:
        for result in _results(runs, open_ones, server, request):
            results.report(result, emit)
            ended.append(result)
    return ended, roles_refused


def of_server(settings: Settings, server: str | None) -> Settings:
    """Return the settings of the lost server. Raises ConfigurationError if it is not certain."""
    config = settings.origin.config
    if config is None:
        if server is not None:
            raise ConfigurationError(["--server is given, but there is no configuration file."])
        return settings
    if server is None and len(config.servers) == 1:
        [server] = config.servers
    if server is None or server not in config.servers:
        names = ", ".join(config.servers)
        problem = f"is not in {config.path}" if server else "is missing"
        raise ConfigurationError([f"--server {problem}. Name the lost server, one of {names}."])
    return config.server(server)


def _report_times(chosen: Sequence[Chosen], emit: events.Emit) -> None:
    """Report between which times the backups started."""
    if len(chosen) > 1:
        times = sorted(each.backup.started for each in chosen)
        apart = span((times[-1] - times[0]).total_seconds())
        emit(
            events.Informed(
                f"The backups of {counted(len(chosen), 'database')} started between "
                f"{iso(times[0])} and {iso(times[-1])}, {apart} apart. Each is consistent by "
                "itself, but not with the others"
            )
        )


def _roles(
    server: Server, chosen: Sequence[Chosen], request: Request, emit: events.Emit
) -> list[str]:
    """Create the missing roles; return those that cannot be created."""
    newest = sorted(chosen, key=lambda each: each.backup.started, reverse=True)
    stored = server_roles.gathered(each.roles for each in newest if each.roles)
    if lacking := [each.database for each in chosen if each.roles is None]:
        emit(events.Warned(f"No roles are stored with the backups of {', '.join(lacking)}"))
    lacking = role_differences.statements(stored, role_differences.on(server), server.major)
    if lacking:
        emit(
            events.Warned(
                "Roles that were on the target before are not changed, and lack what they had on "
                "the lost server. Give them what is still wanted:\n" + "\n".join(lacking),
                to_do=True,
            )
        )
    if request.dry_run:
        missing = server_roles.missing(server, stored)
        if not missing or server_roles.may_create(server):
            count = counted(len(missing), "role")
            emit(events.Informed(f"{count} would be created: {', '.join(missing) or '-'}"))
            return []
        refused = dict.fromkeys(missing, "the login may not create roles")
    else:
        done = server_roles.create(server, stored, emit)
        refused = done.refused
        _report_roles(stored, done, emit)
    if refused:
        reason = next(iter(refused.values()))
        user = server.connection.parameters.get("user", "the login")
        emit(
            events.Warned(
                f"{counted(len(refused), 'role')} cannot be created: {', '.join(refused)} "
                f"({reason}). Databases that need them are not restored. Create them, or run ALTER "
                f"ROLE {identifier(user)} CREATEROLE; and then run the same command again",
                to_do=True,
            )
        )
    return list(refused)


def _report_roles(
    stored: server_roles.Roles, done: server_roles.Created, emit: events.Emit
) -> None:
    logins.warn_of_closed([name for name in done.closed if name not in stored.dropped], emit)
    if dropped := [name for name in stored.dropped if name in done.names]:
        emit(
            events.Warned(
                f"{counted(len(dropped), 'role')} created without login and memberships, because "
                f"newer backups do not have them any more: {', '.join(dropped)}",
                to_do=True,
            )
        )
    if done.rights:
        emit(
            events.Warned(
                "Rights on the whole server are not given to created roles. Those that are still "
                "wanted: " + " ".join(done.rights),
                to_do=True,
            )
        )


def _warn_of_room(server: Server, chosen: Iterable[Chosen], emit: events.Emit) -> None:
    free, needed = disk_room.free(server), sum(each.source_bytes for each in chosen)
    if free is not None and free < needed:
        emit(
            events.Warned(
                f"The disk of the target has {free / 1e9:.1f} GB free, and the databases took "
                f"{needed / 1e9:.1f} GB at the time of their backups. Free some space, or restores "
                "may fail"
            )
        )


def _at_a_time(there: Present, settings: Settings, request: Request, emit: events.Emit) -> int:
    """Return how many restores may run at a time: the target accepts the sessions of all."""
    each = settings.restore_jobs + _OTHER_SESSIONS
    possible = max(1, min(request.parallel, there.free_sessions // each))
    if possible < request.parallel:
        emit(
            events.Warned(
                f"{counted(possible, 'restore')} at a time instead of {request.parallel}: the "
                f"target has {there.free_sessions} free sessions, and a restore needs {each}"
            )
        )
    return possible


def _command(chosen: Chosen, settings: Settings, request: Request) -> Command:
    """Return the restore of one database. No secret is in its arguments."""
    url = settings.target_url
    into = MAINTENANCE if chosen.database == MAINTENANCE else conninfo.named(url)[1]
    arguments = [
        "restore",
        chosen.backup.name,
        "--json",
        "--mark",
        f"--to={conninfo.login_uri(url, into)}",
    ]
    if chosen.database != MAINTENANCE:
        arguments.append(f"--create={chosen.database}")
    variables = {"RESTORE_URL": url}
    if chosen.job is not None:
        arguments.append(f"--job={chosen.job}")
    if chosen.job is not None and settings.origin.config is None:
        # Whatever it is set to: the job is one that the store knows.
        variables["DATABASES"] = f"*,{chosen.job}" if chosen.job in OF_PROVIDERS else "*"
    if request.origin is not None:
        arguments.append(f"--from={request.origin}")
    if request.skip_superuser_objects:
        arguments.append("--skip-superuser-objects")
    if request.dry_run:  # in a dry run, the roles are not there yet
        arguments += ["--dry-run", "--create-roles"]
    inherited = {name: value for name, value in environment().items() if name != _URL_IN_FILE}
    return Command(
        arguments,
        reports=False,
        secrets=tuple(settings.secrets()),
        more={**inherited, **variables},
    )


def _results(
    runs: Iterator[Ended[str]], chosen: Mapping[str, Chosen], server: Server, request: Request
) -> Iterator[Result]:
    for ended in runs:
        result = results.after(ended, chosen[ended.key], dry_run=request.dry_run)
        if result.state == "restored":
            result = _with_mark(result, server)
        yield result


def _with_mark(result: Result, server: Server) -> Result:
    """Return the result of a restore that succeeded, as the mark of the database has it."""
    try:
        mark = present.on(server).databases.get(result.database)
    except TargetLostError as error:
        unknown = f"Could not find out whether it has its owners and privileges: {error.message}"
        return replace(result, warnings=[*result.warnings, unknown])
    return results.incomplete(result, mark) if mark and mark.refused else result
