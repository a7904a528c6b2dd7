"""A service follows its configuration file: changes, mistakes, and files of secrets."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from pgstash import events
from pgstash.commands import once_for_all, reloading, service_of_jobs
from pgstash.commands.reloading import ConfigFile
from pgstash.errors import ConfigurationError, Interrupted
from pgstash.runtime import Runtime, utc_now
from pgstash.service import loop
from pgstash.service.dispatcher import Dispatcher, Stored
from pgstash.settings import Request, Settings, jobs
from pgstash.settings.config import file as file_module
from pgstash.settings.config.file import Config

SECONDS = 60.0
"""A service that does not do what it is waited for ends after this time."""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PGSTASH_CONFIG", str(tmp_path / "pgstash.toml"))
    monkeypatch.setattr(reloading, "SECONDS_BETWEEN_LOOKS", 0.05)
    monkeypatch.setattr(reloading, "SECONDS_TO_SETTLE", 0.05)
    return tmp_path / "pgstash.toml"


def write(path: Path, *servers: str, more: str = "") -> None:
    """Describe servers with one database each, which do not answer; nothing may start now."""
    begin, end = (utc_now() + timedelta(hours=hours) for hours in (-1, 2))
    tables = [
        f'[servers.{each}]\ndatabase_url = "postgresql://u@127.0.0.1:1/{each}"' for each in servers
    ]
    text = f"""
        [defaults]
        storage_url = "{path.parent.as_uri()}"
        backup_encryption = false
        blackout = "{begin:%H:%M}-{end:%H:%M}"
        {more}
        """
    new = path.with_suffix(".new")
    new.write_text("\n".join([text, *tables]))
    new.replace(path)


def chosen() -> Settings:
    return jobs.chosen(Request(), None, may_be_all=True)


def opened() -> ConfigFile:
    config = chosen().origin.config
    assert config is not None
    return ConfigFile(config)


def becomes_due(file: ConfigFile) -> bool:
    give_up = time.monotonic() + 2.0
    while not (due := file.is_due()) and time.monotonic() < give_up:
        time.sleep(file.seconds_to_look())
    return due


def within() -> Callable[[], datetime]:
    """Return a clock that fails after a while."""
    give_up = time.monotonic() + SECONDS

    def now() -> datetime:
        assert time.monotonic() < give_up
        return utc_now()

    return now


class Steps:
    """Runs a step when an event has its words; the last one ends the service."""

    def __init__(self, *steps: tuple[str, Callable[[], None]]) -> None:
        self.steps = list(steps)
        self.seen: list[str] = []

    def __call__(self, event: events.Event) -> None:
        self.seen.append(str(event))
        if self.steps and self.steps[0][0] in str(event):
            self.steps.pop(0)[1]()
        if not self.steps:
            raise Interrupted(signal.SIGTERM)


def test_jobs_come_and_go_with_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken file changes nothing; what is gone or new in a mended one is reported once."""
    monkeypatch.setattr(service_of_jobs, "LONGEST_NAP", 0.2)
    write(path, "one", "two")

    def break_it() -> None:
        write(path, "one", more='workerz = 1\n compression_level = "high"')

    steps = Steps(
        ("2 databases to back up", break_it),
        ("'the configuration file'", lambda: write(path, "two", "three", more="workers = 3")),
        ("Not backed up any more", lambda: None),
        ("New databases, backed up now", lambda: write(path, "two", "three", more="debug = true")),
        ("Needs a new start of the service to change: debug", lambda: None),
    )
    with pytest.raises(Interrupted):
        service_of_jobs.serve(chosen(), Runtime(steps, now=within()))
    assert not steps.steps
    [broken] = [each for each in steps.seen if "it is not read again" in each]
    assert "because of 2 problems" in broken
    assert "defaults.workerz" in broken
    assert "defaults.compression_level" in broken
    [gone] = [each for each in steps.seen if "Not backed up any more" in each]
    assert "as the configuration file or the server does not have them: one/one. " in gone
    [new] = [each for each in steps.seen if "New databases" in each]
    assert "three/three" in new


def test_sighup_reads_the_file_even_if_it_is_the_same(path: Path) -> None:
    write(path, "one", "two")
    steps = Steps(
        ("2 databases to back up", lambda: os.kill(os.getpid(), signal.SIGHUP)),
        ("The configuration file was read again", lambda: None),
    )
    runtime = Runtime(steps, now=within())
    before = signal.getsignal(signal.SIGHUP)
    began = time.monotonic()
    with runtime.interruption.installed(), pytest.raises(Interrupted) as ended:
        service_of_jobs.serve(chosen(), runtime)
    assert ended.value.signum == signal.SIGTERM
    assert time.monotonic() - began < loop.LONGEST_NAP
    assert signal.getsignal(signal.SIGHUP) == before


def test_a_changed_schedule_is_planned_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a job whose place has changed is looked up there."""
    monkeypatch.setattr(service_of_jobs, "LONGEST_NAP", 0.2)
    changes: list[tuple[str, object]] = []
    change = Dispatcher.change

    def noted(*given: object) -> None:
        changes.append((given[1].name, given[2]))  # type: ignore[attr-defined]
        change(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(Dispatcher, "change", noted)
    write(path, "one", "two")
    steps = Steps(
        (
            "2 databases to back up",
            lambda: write(path, "one", "two", more="backup_interval = 7200"),
        ),
        ("was read again", lambda: write(path, "one", "two", more='backup_prefix = "moved"')),
        ("was read again", lambda: write(path, "one", "two", "three")),
        ("New databases", lambda: None),
    )
    with pytest.raises(Interrupted):
        service_of_jobs.serve(chosen(), Runtime(steps, now=within()))
    stored = Stored()
    assert [name for name, _ in changes] == ["one/one", "two/two"] * 3
    assert [found for _, found in changes] == [None] * 2 + [stored] * 4


def test_only_a_change_is_read(path: Path) -> None:
    write(path, "one", "two")
    file = opened()
    time.sleep(0.1)
    assert not file.is_due()
    write(path, "one", "two", "three")
    assert becomes_due(file)
    assert file.read().origin.config.servers == ["one", "two", "three"]  # type: ignore[union-attr]
    time.sleep(0.1)
    assert not file.is_due()
    file.close()


def test_what_is_still_being_written_is_not_read(path: Path) -> None:
    write(path, "one", "two")
    file = opened()
    for number in range(10):
        time.sleep(0.06)
        with path.open("a") as more:
            more.write(f"# {number}\n")
        assert not file.is_due()
    assert becomes_due(file)
    file.close()


def test_a_change_before_the_service_follows_is_noticed(path: Path) -> None:
    write(path, "one", "two")
    config = chosen().origin.config
    assert config is not None
    write(path, "one", "two", "three")
    file = ConfigFile(config)
    assert file.is_due()
    file.close()


def test_a_secret_in_a_file_is_followed(path: Path) -> None:
    (secret := path.parent / "secret").write_text("first-passphrase-1")
    write(path, "one", "two", more='backup_encryption_key = { file = "secret" }')
    file = opened()
    secret.write_text("second-passphrase-2")
    assert becomes_due(file)
    key = file.read().backup_encryption_key
    assert key is not None
    assert key.get_secret_value() == "second-passphrase-2"
    secret.unlink()
    assert becomes_due(file)
    with pytest.raises(ConfigurationError, match="secret"):
        file.read()
    file.close()


@pytest.mark.parametrize("name", ["pgstash.toml", "secret"])
def test_a_change_while_the_file_is_checked_is_noticed(
    name: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path.parent / "secret").write_text("first-passphrase-1")
    write(path, "one", "two", more='backup_encryption_key = { file = "secret" }')
    file = opened()
    check = Config.check

    def changed_meanwhile(config: Config) -> None:
        check(config)
        with (path.parent / name).open("a") as more:
            more.write("# more")

    monkeypatch.setattr(Config, "check", changed_meanwhile)
    file.ask()
    file.read()
    monkeypatch.setattr(Config, "check", check)
    assert becomes_due(file)
    file.read()
    time.sleep(0.1)
    assert not file.is_due()
    file.close()


def test_a_change_just_after_the_file_was_read_is_noticed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, "one", "two")
    file = opened()
    read = file_module.opened

    def changed_then(request: Request) -> Config | None:
        found = read(request)
        write(path, "one", "two", "three")
        return found

    monkeypatch.setattr(file_module, "opened", changed_then)
    file.ask()
    file.read()
    monkeypatch.setattr(file_module, "opened", read)
    assert becomes_due(file)
    assert file.read().origin.config.servers == ["one", "two", "three"]  # type: ignore[union-attr]
    file.close()


def test_a_file_of_a_secret_that_was_lacking_is_awaited(path: Path) -> None:
    write(path, "one", "two")
    file = opened()
    write(path, "one", "two", more='backup_encryption_key = { file = "secret" }')
    assert becomes_due(file)
    with pytest.raises(ConfigurationError, match="secret"):
        file.read()
    (path.parent / "secret").write_text("first-passphrase-1")
    assert becomes_due(file)
    assert file.read().backup_encryption_key is not None
    file.close()


def test_jobs_run_with_the_file_as_it_was_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands there now; and what may be read by whom is still checked."""
    write(path, "one", "two", more='backup_prefix = "first"')
    path.chmod(0o640)
    file = opened()
    path.write_text("broken")
    file.ask()
    with pytest.raises(ConfigurationError):
        file.read()
    monkeypatch.setenv("PGSTASH_CONFIG_SNAPSHOT", str(file.snapshot))
    found = jobs.chosen(Request(), "one/one", may_be_all=False)
    assert found.backup_prefix == "first/one/one"
    assert found.origin.config is not None
    assert found.origin.config.path == path
    assert os.fstat(file.snapshot).st_mode & 0o777 == 0o640
    file.close()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        jobs.chosen(Request(), "one/one", may_be_all=False)


@pytest.mark.parametrize("run", [once_for_all.back_up_all, service_of_jobs.serve])
def test_two_jobs_in_one_place_are_refused_before_anything_starts(
    path: Path, run: Callable[[Settings, Runtime], object]
) -> None:
    write(path, "one", "two")
    with path.open("a") as more:
        more.write('\nbackup_prefix = "postgres-backups/one"')
    values, seen = chosen(), list[events.Event]()
    with pytest.raises(ConfigurationError, match=r"has the same store and prefix as servers\.one"):
        run(values, Runtime(seen.append, now=within()))
    assert seen == []


def test_a_place_that_is_taken_later_is_not_used_twice(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other jobs go on. Each listing reports it until it is mended, but one message is sent."""
    monkeypatch.setattr(service_of_jobs, "LONGEST_NAP", 0.2)
    monkeypatch.setattr(service_of_jobs, "LISTING", timedelta(seconds=0.3))
    write(path, "one", "two")
    folder = path.parent / "postgres-backups"
    (folder / "one" / "one").mkdir(parents=True)
    (folder / "two").mkdir()
    link = folder / "two" / "two"

    def taken() -> None:
        link.symlink_to("../one/one")

    refused = "it has the same store and prefix as one/one"
    steps = Steps(
        ("2 databases to back up", taken),
        (refused, lambda: None),
        (refused, link.unlink),
        ("New databases, backed up now: two/two", lambda: None),
    )
    with pytest.raises(Interrupted):
        service_of_jobs.serve(chosen(), Runtime(steps, now=within()))
    assert not any("Not backed up any more" in each for each in steps.seen)
    first, *others = [each for each in steps.seen if refused in each]
    assert "repeated=False" in first  # the only one that the webhook gets
    assert all("repeated=True" in each for each in others)
    assert others
    taken()
    steps = Steps((refused, lambda: None))
    with pytest.raises(Interrupted):
        once_for_all.back_up_all(chosen(), Runtime(steps, now=within()))
