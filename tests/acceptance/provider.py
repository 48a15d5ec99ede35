#!/usr/bin/env python3
"""A strict provider to judge Paceline from outside: it shares no code with it and needs only Python.

Each key has a sliding window log: never more than --limit accepted calls within any --per seconds, as they arrive here;
the call over it is answered 429. A call is delayed before it is judged (the way here) and again before it is answered
(the work), both lognormal. What arrived is kept in a ledger: GET /_stats prints it, and it is written to --ledger on
SIGTERM, SIGINT and SIGHUP.

    provider.py --port 9000 --limit 100 --per 10 --ledger provider.json

The key is the bearer token of `authorization`, else `x-api-key`, else the query's `api_key`. Paths with a meaning:
/…/status/CODE answers CODE; /…/flaky/K answers 503 to the first K accepted calls of the same Idempotency-Key; /…/hang
never answers; /…/reset closes the connection after the call was counted; any other path answers 200 with what it saw.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import math
import random
import re
import signal
import sys
import time
import urllib.parse

Z99 = 2.3263478740408408  # the 99th percentile of the normal distribution


class Lognormal:
    """Delays in seconds, given as MEDIAN:P99 in milliseconds; 0 is none."""

    def __init__(self, text):
        median, _, p99 = text.partition(":")
        self.median = float(median) / 1000
        self.sigma = math.log(float(p99) / float(median)) / Z99 if p99 and self.median else 0.0

    def draw(self, chance):
        return self.median and chance.lognormvariate(math.log(self.median), self.sigma)


class Key:
    """One key's sliding window log and what happened to its calls."""

    def __init__(self):
        self.window = collections.deque()
        self.arrivals = []
        self.rejected = []

    def judge(self, now, limit, per):
        while self.window and self.window[0] <= now - per:
            self.window.popleft()
        if len(self.window) >= limit:
            self.rejected.append(now)
            return self.window[0] + per - now  # seconds until there is room again
        self.window.append(now)
        self.arrivals.append(now)
        return None

    def utilisation(self, limit, per):
        """W ÷ the mean time that `limit` accepted calls took: 1 is exactly the allowed rate."""
        spans = [later - earlier for earlier, later in zip(self.arrivals, self.arrivals[limit:])]
        return per * len(spans) / sum(spans) if spans and sum(spans) else None


class Provider:
    def __init__(self, options):
        self.options = options
        self.chance = random.Random(options.seed)
        self.keys = collections.defaultdict(Key)
        self.calls = collections.defaultdict(list)  # Idempotency-Key → accepted calls
        self.statuses = collections.Counter()
        self.started = time.time()
        self.zero = time.monotonic()
        self.open = self.most_open = 0

    def stats(self):
        limit, per = self.options.limit, self.options.per
        return {
            "started_at": self.started,
            "limit": limit,
            "per_s": per,
            "accepted": sum(len(key.arrivals) for key in self.keys.values()),
            "rejected": sum(len(key.rejected) for key in self.keys.values()),
            "statuses": {str(code): count for code, count in sorted(self.statuses.items())},
            "most_open": self.most_open,
            "keys": {
                name: {
                    "accepted": len(key.arrivals),
                    "rejected": len(key.rejected),
                    "utilisation": key.utilisation(limit, per),
                    "arrivals_s": [round(at, 6) for at in key.arrivals],
                    "rejected_at_s": [round(at, 6) for at in key.rejected],
                }
                for name, key in sorted(self.keys.items())
            },
            "calls": self.calls,
        }

    async def answer(self, method, target, headers, body):
        """→ status, extra headers, body; None closes the connection."""
        path, _, query = target.partition("?")
        if path == "/_stats":
            return 200, {}, self.stats()
        await asyncio.sleep(self.options.way.draw(self.chance))
        name = key_of(headers, query)
        if name is None:
            self.statuses[401] += 1
            return 401, {}, {"error": "no key"}
        now = time.monotonic() - self.zero
        wait_s = self.keys[name].judge(now, self.options.limit, self.options.per)
        if wait_s is not None:
            self.statuses[429] += 1
            return 429, {"retry-after": str(math.ceil(wait_s))}, {"error": "rate limit"}
        job = headers.get("idempotency-key", "")
        status = self.status_of(path, job)
        call = {"at_s": round(now, 6), "key": name, "method": method, "path": path, "status": status}
        self.calls[job].append(call)
        await asyncio.sleep(self.options.work.draw(self.chance))
        if path.endswith("/hang"):
            await asyncio.Event().wait()
        if path.endswith("/reset"):
            return None
        self.statuses[status] += 1
        return status, {}, {"ok": status < 400, "path": path, "idempotency_key": job, "bytes": len(body)}

    def status_of(self, path, job):
        if match := re.search(r"/status/(\d{3})$", path):
            return int(match[1])
        if match := re.search(r"/flaky/(\d{1,4})$", path):
            return 503 if len(self.calls[job]) < int(match[1]) else 200
        return 200

    async def serve(self, reader, writer):
        try:
            while request := await read_request(reader):
                self.open += 1
                self.most_open = max(self.most_open, self.open)
                try:
                    reply = await self.answer(*request)
                finally:
                    self.open -= 1
                if reply is None:
                    break
                await write_reply(writer, *reply)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            pass  # the other side left, or did not speak HTTP
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


def key_of(headers, query):
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token
    return headers.get("x-api-key") or urllib.parse.parse_qs(query).get("api_key", [None])[0]


async def read_request(reader):
    """→ method, target, headers, body; None where the connection ended between two requests."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as end:
        if end.partial:
            raise
        return None
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = b""
        while size := int((await reader.readline()).split(b";")[0], 16):
            body += (await reader.readexactly(size + 2))[:-2]
        while (await reader.readline()).strip():
            pass
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return method, target, headers, body


async def write_reply(writer, status, extra, body):
    data = json.dumps(body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(data)), **extra}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(f"HTTP/1.1 {status} Status\r\n{lines}\r\n".encode("latin-1") + data)
    await writer.drain()


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one; it is printed")
    parser.add_argument("--limit", type=int, default=100, help="calls a key may make …")
    parser.add_argument("--per", type=float, default=10.0, help="… within this many seconds")
    parser.add_argument("--way", type=Lognormal, default="15:120", help="delay before the judgement, MEDIAN:P99 in ms")
    parser.add_argument("--work", type=Lognormal, default="15:120", help="delay after it, MEDIAN:P99 in ms")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--ledger", help="the file to write the statistics to at the end")
    options = parser.parse_args()

    provider = Provider(options)
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    server = await asyncio.start_server(provider.serve, "127.0.0.1", options.port, limit=1 << 20, backlog=4096)
    print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await stop.wait()
    server.close()
    stats = provider.stats()
    if options.ledger:
        with open(options.ledger, "w", encoding="utf-8") as file:
            json.dump(stats, file)
    print(f"{stats['accepted']} accepted, {stats['rejected']} rejected", file=sys.stderr)


if __name__ == "__main__":
    asyncio.run(main())
