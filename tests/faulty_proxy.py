"""An HTTP proxy in front of a store that answers some requests itself, with a fault: ``faulty_proxy.py PORT TARGET_PORT``.

``PUT /--faults`` sets which: {"match": regex over "METHOD path", "rate", "seed", "status", "code", "times": after so many
it passes all on again}, or {} for none; ``GET /--faults`` lists those that were answered so, each as "METHOD path".
"""

import http.client
import json
import math
import random
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

CONTROL = "/--faults"
_OF_ONE_LEG = ("connection", "transfer-encoding")


class FaultyProxy(BaseHTTPRequestHandler):
    """Passes requests on, or answers with S3's error document."""

    protocol_version = "HTTP/1.1"
    target_port = 0
    faults: ClassVar[dict[str, Any]] = {}
    draw = random.Random(0)
    answered: ClassVar[list[str]] = []
    lock = threading.Lock()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == CONTROL:
            self._control(body)
        elif self._is_due():
            code, status = self.faults.get("code", "SlowDown"), self.faults.get("status", 503)
            document = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>by the proxy</Message></Error>"
            self._reply(status, {"Content-Type": "application/xml"}, document.encode())
        else:
            self._pass_on(body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer  # noqa: N815

    def _control(self, body: bytes) -> None:
        cls = type(self)
        with cls.lock:
            if self.command == "PUT":
                cls.faults, cls.answered = json.loads(body), []
                cls.draw = random.Random(cls.faults.get("seed", 0))
            self._reply(200, {}, json.dumps(cls.answered).encode())

    def _is_due(self) -> bool:
        cls = type(self)
        with cls.lock:
            request = f"{self.command} {self.path}"
            if not cls.faults or not re.search(cls.faults.get("match", ""), request):
                return False
            is_due = len(cls.answered) < cls.faults.get("times", math.inf) and cls.draw.random() < cls.faults.get("rate", 1)
            cls.answered += [request] * is_due
            return is_due

    def _pass_on(self, body: bytes) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.target_port, timeout=30)
        connection.request(self.command, self.path, body=body, headers=dict(self.headers.items()))
        answer = connection.getresponse()
        headers = {
            name: value for name, value in answer.getheaders() if name.lower() not in ("connection", "transfer-encoding")
        }
        self._reply(answer.status, headers, answer.read())
        connection.close()

    def _reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if not any(name.lower() == "content-length" for name in headers):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Nothing."""


class Server(ThreadingHTTPServer):
    """Many connections at once; one that its client drops is no news."""

    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_arguments: object) -> None:
        """Nothing."""


if __name__ == "__main__":
    FaultyProxy.target_port = int(sys.argv[2])
    Server(("127.0.0.1", int(sys.argv[1])), FaultyProxy).serve_forever()
