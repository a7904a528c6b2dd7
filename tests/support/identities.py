"""The services of AWS that hand out temporary credentials, on loopback, with their real protocols.

One server speaks for all: the metadata service of a machine (IMDSv2), the credential service of a
container (ECS, EKS Pod Identity) and the token service (STS). The keys are those of a store that
tests have; each set comes with a session token of its own. ``guard`` makes a proxy before the store
refuse every other token, as AWS does.
"""

from __future__ import annotations

import json
import threading
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self
from urllib.parse import parse_qs, urlsplit

from support.proxy import ANY, HOST, TICK, Answer, HttpProxy, Request, Rule

if TYPE_CHECKING:
    from pathlib import Path

ROLE = "arn:aws:iam::123456789012:role/backup"
CONTAINER_TOKEN = "planted-authorization-of-the-container"
WEB_TOKEN = "planted.web.identity"
_METADATA_TOKEN = "planted-metadata-token"
_METADATA = "/latest/meta-data/iam/security-credentials/"
_SPACE = "https://sts.amazonaws.com/doc/2011-06-15/"
SOURCES = ("environment", "profile", "metadata", "container", "web identity")


@dataclass
class Identities:
    """Hands out the keys of a store; ``lifetime`` of each set is in seconds."""

    access_key_id: str
    secret_access_key: str
    lifetime: float = 3600.0
    asked: list[str] = field(default_factory=list)
    """What was requested: an action of STS, ``container`` or ``metadata``."""
    tokens: list[str] = field(default_factory=list)
    """The session tokens that are valid, oldest first."""
    refusal: tuple[int, str] | None = None
    """The status and the code that STS answers instead; others answer with the status."""

    def __enter__(self) -> Self:
        self._lock = threading.Lock()
        service = self

        class Handler(_Handler):
            def __init__(self, *args: object) -> None:
                self.service = service
                super().__init__(*args)  # type: ignore[arg-type] # as in proxy.py

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(TICK,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self._server.server_port}"

    def issue(self, asked: str) -> dict[str, str]:
        """Return a new set of credentials, with a token that becomes valid."""
        with self._lock:
            self.asked.append(asked)
            token = f"planted-session-{uuid.uuid4().hex}"
            self.tokens.append(token)
        ends = datetime.now(UTC) + timedelta(seconds=self.lifetime)
        return {
            "AccessKeyId": self.access_key_id,
            "SecretAccessKey": self.secret_access_key,
            "Token": token,
            "Expiration": f"{ends:%Y-%m-%dT%H:%M:%SZ}",
        }

    def expire(self) -> None:
        """Make the store refuse all tokens that were issued up to now."""
        with self._lock:
            self.tokens.clear()

    def variables(self, source: str, folder: Path) -> dict[str, str]:
        """Return the environment of a process that has its identity from this source.

        ``folder`` becomes its home. The environment and a profile get a token that is valid.
        """
        found = {"HOME": str(folder), "AWS_EC2_METADATA_DISABLED": "true"}
        if source in ("environment", "profile"):
            given = self.issue(source)
            keys = {
                "aws_access_key_id": given["AccessKeyId"],
                "aws_secret_access_key": given["SecretAccessKey"],
                "aws_session_token": given["Token"],
            }
            if source == "environment":
                return found | {name.upper(): value for name, value in keys.items()}
            lines = [f"{name} = {value}\n" for name, value in keys.items()]
            (folder / ".aws").mkdir(exist_ok=True)
            (folder / ".aws" / "credentials").write_text("".join(["[backups]\n", *lines]))
            return found | {"AWS_PROFILE": "backups"}
        if source == "metadata":
            return {"HOME": str(folder), "AWS_EC2_METADATA_SERVICE_ENDPOINT": self.endpoint}
        token = folder / "token"
        if source == "container":
            token.write_text(CONTAINER_TOKEN)
            return found | {
                "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{self.endpoint}/v1/credentials",
                "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(token),
            }
        token.write_text(WEB_TOKEN)
        return found | {
            "AWS_ENDPOINT_URL_STS": self.endpoint,
            "AWS_ROLE_ARN": ROLE,
            "AWS_WEB_IDENTITY_TOKEN_FILE": str(token),
        }


def guard(http: HttpProxy, identities: Identities, *, expire_at_part: int | None = None) -> Rule:
    """Refuse requests whose session token is not valid; at a part of that number all expire."""

    def wrong(request: Request) -> bool:
        parts = request.query.get("partNumber", [""])
        if expire_at_part is not None and parts == [str(expire_at_part)] and parts != seen:
            seen[:] = parts
            identities.expire()
        headers = {name.lower(): value for name, value in request.headers.items()}
        return headers.get("x-amz-security-token") not in identities.tokens

    seen: list[str] = []
    rule = http.rule(ANY, Answer(400, "ExpiredToken", "The provided token has expired."))
    rule.matches = wrong
    return rule


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    service: Identities

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the base
        pass

    def do_PUT(self) -> None:
        self._send(200, _METADATA_TOKEN, "text/plain")

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/v1/credentials":
            self._json("container", allowed=self.headers["Authorization"] == CONTAINER_TOKEN)
        elif self.headers["X-aws-ec2-metadata-token"] != _METADATA_TOKEN:
            self._send(401, "", "text/plain")
        elif path == _METADATA:
            self._send(200, "backup", "text/plain")
        elif path == f"{_METADATA}backup":
            self._json("metadata", allowed=True)
        else:
            self._send(404, "", "text/plain")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        form = {name: values[0] for name, values in parse_qs(body).items()}
        action = form["Action"]
        signed = f"Credential={self.service.access_key_id}/" in self.headers.get(
            "Authorization", ""
        )
        allowed = form.get("WebIdentityToken") == WEB_TOKEN if "Web" in action else signed
        status, code = self.service.refusal or (403, "AccessDenied")
        if self.service.refusal or not allowed or form["RoleArn"] != ROLE:
            self.service.asked.append(action)
            self._send(
                status,
                f'<ErrorResponse xmlns="{_SPACE}"><Error><Type>Sender</Type><Code>{code}</Code>'
                "<Message>planted by the test</Message></Error></ErrorResponse>",
                "text/xml",
            )
            return
        given = self.service.issue(action)
        given["SessionToken"] = given.pop("Token")
        inside = "".join(f"<{name}>{value}</{name}>" for name, value in given.items())
        user = f"arn:aws:sts::123456789012:assumed-role/backup/{form['RoleSessionName']}"
        self._send(
            200,
            f'<{action}Response xmlns="{_SPACE}"><{action}Result><Credentials>{inside}'
            f"</Credentials><AssumedRoleUser><Arn>{user}</Arn><AssumedRoleId>A:b</AssumedRoleId>"
            f"</AssumedRoleUser></{action}Result></{action}Response>",
            "text/xml",
        )

    def _json(self, asked: str, *, allowed: bool) -> None:
        if self.service.refusal or not allowed:
            self.service.asked.append(asked)
            status = self.service.refusal[0] if self.service.refusal else 401
            self._send(status, json.dumps({"message": "planted by the test"}), "application/json")
            return
        given = self.service.issue(asked)
        self._send(200, json.dumps({"Code": "Success", **given}), "application/json")

    def _send(self, status: int, text: str, kind: str) -> None:
        body = text.encode()
        self.send_response_only(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
