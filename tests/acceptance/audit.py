#!/usr/bin/env python3
"""Audit a run from outside: compare what was published with the provider's and the webhook receiver's own ledgers.

    audit.py --prefix py-1- --count 1000 --provider provider.json --webhooks webhooks.jsonl

Prints the findings as JSON; the exit code is 0 only when no job is lost or was executed twice with success, no call was
over the limit, and each job has exactly one completion event, with a signature that holds.
"""

import argparse
import collections
import json
import sys

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--prefix", required=True)
parser.add_argument("--count", type=int, required=True)
parser.add_argument("--provider", required=True, help="the ledger of provider.py")
parser.add_argument("--webhooks", help="the ledger of receive_webhooks.py")
options = parser.parse_args()

jobs = {f"{options.prefix}{number}" for number in range(options.count)}
with open(options.provider, encoding="utf-8") as file:
    provider = json.load(file)
calls = {job: seen for job, seen in provider["calls"].items() if job in jobs}
succeeded = collections.Counter(job for job, seen in calls.items() for call in seen if call["status"] < 400)

finding = {
    "jobs": len(jobs),
    "never_called": sorted(jobs - calls.keys()),
    "executed_more_than_once": sorted(job for job, times in succeeded.items() if times > 1),
    "over_the_limit": provider["rejected"],
    "utilisation": {name: key["utilisation"] for name, key in provider["keys"].items()},
}
faults = ["never_called", "executed_more_than_once", "over_the_limit"]

if options.webhooks:
    events, unverified = collections.defaultdict(set), 0
    with open(options.webhooks, encoding="utf-8") as file:
        for entry in map(json.loads, file):
            if entry["verified"]:
                events[entry["event"]["data"]["job_id"]].add(entry["id"])
            else:
                unverified += 1
    finding["unverified_webhooks"] = unverified
    finding["without_event"] = sorted(jobs - events.keys())
    finding["with_several_events"] = sorted(job for job in jobs & events.keys() if len(events[job]) > 1)
    faults += ["unverified_webhooks", "without_event", "with_several_events"]

finding["good"] = not any(finding[fault] for fault in faults)
print(json.dumps(finding, indent=2))
sys.exit(0 if finding["good"] else 1)
