#!/usr/bin/env python3
"""A receiver by the official Python library: receiver.py SECRETS LEDGER

SECRETS is a file of lines NAME=whsec_…, read anew for each request. LEDGER gets a JSON line a request, with the names
that verify it. Prints its port first.
"""
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from standardwebhooks import Webhook, WebhookVerificationError

def verifies(secret, body, headers):
    try:
        Webhook(secret).verify(body, headers)
        return True
    except WebhookVerificationError:
        return False

class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        with open(sys.argv[1]) as file:
            known = dict(line.strip().split("=", 1) for line in file if "=whsec_" in line)
        by = [name for name, secret in known.items() if verifies(secret, body, dict(self.headers))]
        # A changed body must not verify, whatever the library thinks of the rest.
        changed = [name for name, secret in known.items() if verifies(secret, body + b" ", dict(self.headers))]
        event = json.loads(body)
        entry = {"id": self.headers["webhook-id"], "type": event["type"], "by": by, "changed": changed}
        entry["signatures"] = self.headers["webhook-signature"]
        with open(sys.argv[2], "a") as ledger:
            ledger.write(json.dumps(entry) + "\n")
        self.send_response(204 if by else 401)
        self.end_headers()

    def log_message(self, *_):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
print(server.server_port, flush=True)
server.serve_forever()
