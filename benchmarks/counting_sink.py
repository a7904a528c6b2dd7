"""An S3 endpoint that counts what it gets and keeps nothing: the upload path without a server.

It handles only the requests of one backup, checks no signature, and is for measuring alone.
"""

from __future__ import annotations

import hashlib
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

_CHUNK = 1 << 20

# The size of each part of an upload, by its number: a later request lists them.
parts: dict[int, int] = {}


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of pgstash as S3 does."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one write for each answer, so that no delayed acknowledgement holds it up

    def _query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query, keep_blank_values=True)

    def _drain(self) -> int:
        left = length = int(self.headers.get("Content-Length", 0))
        while left:
            left -= len(self.rfile.read(min(left, _CHUNK)))
        return length

    def _answer(self, body: str = "", status: int = 200, **headers: str) -> None:
        data = body.encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def do_HEAD(self) -> None:
        """Answer that the object does not exist."""
        self._answer(status=404)

    def do_GET(self) -> None:
        """List the parts of the upload, or an empty bucket."""
        if "uploadId" not in self._query():
            self._answer("<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")
            return
        after = int(self._query().get("part-number-marker", ["0"])[0])
        page = [number for number in sorted(parts) if number > after][:1000]
        listed = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{_etag(number)}</ETag>"
            f"<Size>{parts[number]}</Size></Part>"
            for number in page
        )
        more = str(bool(page) and page[-1] != max(parts)).lower()
        last = page[-1] if page else 0
        self._answer(
            f"<ListPartsResult><IsTruncated>{more}</IsTruncated>"
            f"<NextPartNumberMarker>{last}</NextPartNumberMarker>{listed}</ListPartsResult>"
        )

    def do_PUT(self) -> None:
        """Count a part, or a small object."""
        size = self._drain()
        number = int(self._query().get("partNumber", ["0"])[0])
        if number:
            parts[number] = size
        self._answer(ETag=_etag(number))

    def do_POST(self) -> None:
        """Begin an upload, or end it."""
        self._drain()
        if "uploads" in self._query():
            parts.clear()
            self._answer(
                "<InitiateMultipartUploadResult><UploadId>one</UploadId>"
                "</InitiateMultipartUploadResult>"
            )
        else:
            self._answer(
                "<CompleteMultipartUploadResult><ETag>"
                + escape(_etag(0))
                + "</ETag></CompleteMultipartUploadResult>"
            )

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def _etag(number: int) -> str:
    return f'"{hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()}"'


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        print(server.server_address[1], flush=True)
        sys.stdout.close()
        server.serve_forever()
