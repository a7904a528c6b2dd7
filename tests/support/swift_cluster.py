"""Run one Swift cluster in the foreground: account, container, object and proxy server.

Executed by the interpreter of Swift's own environment, not imported::

    python -I swift_cluster.py DATA_DIR PROXY_PORT ACCOUNT_PORT CONTAINER_PORT OBJECT_PORT

It ends, and ends the servers, when its standard input is closed: so nothing stays
behind, whichever way the process that started it died.
"""

from __future__ import annotations

import getpass
import subprocess
import sys
from pathlib import Path

HOST = "127.0.0.1"
ACCESS_KEY = "test:tester"
SECRET_ACCESS_KEY = "swift-test-secret"
PAGE = 100  # keys: few, so that listings of tests have several pages

SWIFT_CONF = """\
[swift-hash]
swift_hash_path_prefix = pgstash
swift_hash_path_suffix = tests

[storage-policy:0]
name = gold
default = yes
"""

COMMON = """\
[DEFAULT]
bind_ip = {host}
bind_port = {port}
workers = 0
user = {user}
swift_dir = {root}
devices = {root}/devices
mount_check = false
disable_fallocate = true
log_level = WARNING
"""

# A slow machine must not turn into an error of the store: the inner time limits are wide.
BACKEND = """\
container_update_timeout = 20
node_timeout = 60
conn_timeout = 10

[pipeline:main]
pipeline = {kind}-server

[app:{kind}-server]
use = egg:swift#{kind}
"""

PROXY = """\

[pipeline:main]
pipeline = catch_errors healthcheck proxy-logging listing_formats bulk s3api tempauth copy slo dlo \
versioned_writes symlink proxy-logging proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
node_timeout = 60
conn_timeout = 10
recoverable_node_timeout = 60

[filter:catch_errors]
use = egg:swift#catch_errors
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:proxy-logging]
use = egg:swift#proxy_logging
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
max_upload_part_num = 10000
max_parts_listing = 1000
max_bucket_listing = {page}
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {secret} .admin
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
max_manifest_segments = 10000
[filter:dlo]
use = egg:swift#dlo
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_object_versioning = true
[filter:symlink]
use = egg:swift#symlink
"""


def write_configuration(root: Path, ports: dict[str, int]) -> None:
    """Write swift.conf, one configuration per server and a ring of one device for each kind."""
    from swift.common.ring import RingBuilder  # noqa: PLC0415 - only Swift's environment has it

    (root / "devices" / "d1").mkdir(parents=True)
    (root / "swift.conf").write_text(SWIFT_CONF)
    for kind, port in ports.items():
        head = COMMON.format(host=HOST, port=port, user=getpass.getuser(), root=root)
        if kind == "proxy":
            (root / "proxy.conf").write_text(
                head + PROXY.format(secret=SECRET_ACCESS_KEY, page=PAGE)
            )
            continue
        (root / f"{kind}.conf").write_text(head + BACKEND.format(kind=kind))
        ring = RingBuilder(part_power=4, replicas=1, min_part_hours=0)
        ring.add_dev(
            {"id": 0, "region": 1, "zone": 1, "weight": 1, "ip": HOST, "port": port, "device": "d1"}
        )
        ring.rebalance()
        ring.get_ring().save(str(root / f"{kind}.ring.gz"))


def main() -> None:
    """Start the four servers, and end them when nobody holds our standard input any more."""
    root = Path(sys.argv[1]).absolute()
    kinds = ("proxy", "account", "container", "object")
    write_configuration(root, dict(zip(kinds, map(int, sys.argv[2:]), strict=True)))
    scripts = Path(sys.executable).parent
    servers = []
    try:
        for kind in reversed(kinds):
            with (root / f"{kind}.log").open("wb") as log:
                servers.append(
                    subprocess.Popen(
                        [sys.executable, scripts / f"swift-{kind}-server", root / f"{kind}.conf"],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        sys.stdin.buffer.read()
    finally:
        for server in servers:
            server.kill()
        for server in servers:
            server.wait()


if __name__ == "__main__":
    main()
