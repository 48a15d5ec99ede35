#!/usr/bin/env python3
"""Receive and verify Paceline's webhooks: receive_webhooks.py PORT [LEDGER]   (PACELINE_WEBHOOK_SECRET=whsec_…)

Prints one JSON line an event, also to the file LEDGER. Standard library only.
"""
import base64, hashlib, hmac, json, os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

secret = base64.b64decode(os.environ["PACELINE_WEBHOOK_SECRET"].removeprefix("whsec_"))
ledger = open(sys.argv[2], "a", buffering=1) if len(sys.argv) > 2 else None

def verified(headers, body):
    """Is one of the signatures ours, and the time within five minutes of now? (standardwebhooks.com)"""
    event, sent = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not (event and sent.isascii() and sent.isdigit() and len(sent) < 16 and abs(time.time() - int(sent)) <= 300):
        return False
    digest = hmac.new(secret, f"{event}.{sent}.".encode() + body, hashlib.sha256).digest()
    expected = b"v1," + base64.b64encode(digest)
    given = headers.get("webhook-signature", "").encode("utf-8", "replace").split(b" ")
    return any([hmac.compare_digest(expected, one) for one in given])  # several while a secret is being rotated

class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(min(int(self.headers.get("content-length", 0)), 1 << 20))  # webhooks are far shorter
        good = verified(self.headers, body)
        event = json.loads(body) if good else None
        entry = {"at": time.time(), "id": self.headers.get("webhook-id"), "verified": good, "event": event}
        # Keep it first, then say so: the same id may come twice. One write a line: several threads write here.
        print(json.dumps(entry) + "\n", end="", file=ledger or sys.stdout, flush=True)
        self.send_response(204 if good else 401)
        self.send_header("content-length", "0")
        self.send_header("connection", "keep-alive" if good else "close")
        self.end_headers()

    log_message = lambda *_: None

ThreadingHTTPServer.request_queue_size = 1024
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
