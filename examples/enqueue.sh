#!/bin/sh
# Enqueue one job over HTTP: enqueue.sh PROVIDER PATH [JSON_BODY] [ID]   (PACELINE_URL, PACELINE_TOKEN where one is needed)
# Running it again with the same ID is safe: it is the same job, and the answer tells its state.
set -eu
usage="usage: enqueue.sh PROVIDER PATH [JSON_BODY] [ID]"
provider=${1:?$usage} path=${2:?$usage}
body=${3:-null} id=${4:-curl-$(date +%s)-$$}

if [ "$body" = null ]; then method=GET content=""; else method=POST content=",\"body\":$body"; fi
job="{\"id\":\"$id\",\"provider\":\"$provider\",\"request\":{\"method\":\"$method\",\"path\":\"$path\"$content}}"

# The token goes in by standard input: an argument could be read by every user of the machine.
if [ -n "${PACELINE_TOKEN:-}" ]; then printf 'header = "authorization: Bearer %s"\n' "$PACELINE_TOKEN"; fi |
    curl --config - --fail-with-body --silent --show-error --max-time 30 --retry 5 --retry-connrefused \
        --header 'content-type: application/json' --data "$job" "${PACELINE_URL:-http://127.0.0.1:8080}/v1/jobs"
echo
