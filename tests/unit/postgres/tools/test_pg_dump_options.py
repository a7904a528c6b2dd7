"""Which options a user may add to pg_dump, and how lists of patterns are read."""

from __future__ import annotations

import pytest

from pgstash.postgres.tools.pg_dump_options import allowed, excluding, leaving_out, split_list

ALLOWED = {
    "": [],
    "-v": ["-v"],
    "-vx": ["-v", "-x"],
    "--no-comments --verbose": ["--no-comments", "--verbose"],
    "-T a -Nb": ["--exclude-table=a", "--exclude-schema=b"],
    "-vT 'a b'": ["-v", "--exclude-table=a b"],
    "--exclude-table a": ["--exclude-table=a"],
    "--exclude-table='a \"B\"'": ['--exclude-table=a "B"'],
    # As getopt_long(3) does: what follows is the value, whatever it looks like.
    "--table -v": ["--table=-v"],
    "--role $HOME;x": ["--role=$HOME;x"],
}


@pytest.mark.parametrize("text", ALLOWED)
def test_allowed(text: str) -> None:
    assert allowed(text) == ALLOWED[text]


REFUSED = {
    "-Fc": ["-F (an archive is plain SQL"],
    "-vFc": ["-F (an archive is plain SQL"],
    "-F c -j 4": ["-F (an archive", "-j (one stream"],
    "--format=d --file x": ["--format (an archive", "--file (an archive"],
    "--form=c": ["--form (not an option that pgstash knows; abbreviations"],
    "--forma d -v": ["--forma (not an option that", "d (not an option)"],
    "-Z9": ["-Z ("],
    "-h x -p 1 -U u -d d -w -W": [f"-{each} (DATABASE_URL" for each in "hpUdwW"],
    "-s -a --section=data --no-data": [
        "-s (half",
        "-a (half",
        "--section (half",
        "--no-data (half",
    ],
    "-C": ["-C (a backup restores into"],
    "--inserts --rows-per-insert 5": ["--inserts (rows are", "--rows-per-insert (rows are"],
    "-E LATIN1": ["-E (a dump is in"],
    "--snapshot=1": ["--snapshot ("],
    "-? --help -V --version": ["-? (", "--help (", "-V (", "--version ("],
    "--enable-row-security": ["--enable-row-security (rows would be left out"],
    "--filter=f": ["--filter (write"],
    "shop": ["shop (not an option)"],
    "-": ["- (not an option)"],
    "-- shop": ["-- (not an option)", "shop (not an option)"],
    "''": ["an empty word (not an option)"],
    "--verbose=1": ["--verbose (it takes no value)"],
    "--table": ["--table (it needs a value)"],
    "--table=": ["--table (it needs a value)"],
    "-T ''": ["-T (it needs a value)"],
    "-y": ["-y (not an option that pgstash knows"],
    "--=x": ["-- (not an option that"],
}


@pytest.mark.parametrize("text", REFUSED)
def test_refused_with_a_reason_each(text: str) -> None:
    with pytest.raises(ValueError, match="cannot be used: ") as caught:
        allowed(text)
    told = str(caught.value).removeprefix("cannot be used: ").split("; ")
    told = [each for each in told if not each.startswith("abbreviations")]
    wanted = [each.partition("; ")[0] for each in REFUSED[text]]
    assert len(told) == len(wanted), told
    for found, beginning in zip(told, wanted, strict=True):
        assert found.startswith(beginning)


def test_a_list_is_split_outside_of_quotes() -> None:
    assert split_list(' a , "b,c".d,, e."f""g" ') == ["a", '"b,c".d', 'e."f""g"']


def test_patterns_never_become_another_option() -> None:
    assert excluding(tables="-Fc,a", table_data="b", schemas="c d") == [
        "--exclude-table=-Fc",
        "--exclude-table=a",
        "--exclude-table-data=b",
        "--exclude-schema=c d",
    ]
    assert excluding() == []


def test_which_options_leave_something_out() -> None:
    given = allowed("-v -O --role=r -Sx --no-policies -B -t a --load-via-partition-root -N 'b c'")
    left = ["--no-policies", "-B", "--table=a", "--exclude-schema=b c"]
    assert leaving_out(given) == left
    # Those of another version, which is stored with it, nobody knows here.
    assert leaving_out(["--no-owner", "--no-such", "-q"]) == ["--no-such", "-q"]
