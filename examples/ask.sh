#!/bin/sh
# Ask a running service with curl: what it serves, what its model predicts, and why.
#
#     sh examples/ask.sh http://127.0.0.1:8000 egypt embassy uk
#
# Where the service asks for a key: KGTRACE_READ_KEY=... sh examples/ask.sh ...

set -eu
usage="usage: ask.sh ADDRESS HEAD RELATION TAIL"
address=${1:?$usage} head=${2:?$usage} relation=${3:?$usage} tail=${4:?$usage}

ask() {
    echo "# $1" >&2
    shift
    curl --silent --show-error --fail-with-body ${KGTRACE_READ_KEY:+--header "X-API-Key: $KGTRACE_READ_KEY"} "$@"
    echo
}

ask "Which index answers?" "$address/v1/index"

ask "Which entities are called so?" --get "$address/v1/entities" --data-urlencode "q=$head" --data limit=5

ask "Which tails does the model find most plausible, that are not known yet?" \
    --get "$address/v1/predictions" --data-urlencode "head=$head" --data-urlencode "relation=$relation" \
    --data filtered=true --data top_k=3

ask "Which training triples speak most for this one?" \
    --get "$address/v1/influences" --data-urlencode "head=$head" --data-urlencode "relation=$relation" \
    --data-urlencode "tail=$tail" --data top_k=3

ask "Which speak against it, and touch its head or tail? (The same route takes up to 256 triples as JSON.)" \
    "$address/v1/influences" --header "Content-Type: application/json" --data @- <<JSON
{"triples": [["$head", "$relation", "$tail"]], "top_k": 3, "order": "opponents", "within_hops": 1}
JSON

ask "From which relations does the influence come?" \
    "$address/v1/aggregate" --header "Content-Type: application/json" --data @- <<JSON
{"triple": ["$head", "$relation", "$tail"], "by": "relation", "top_k": 3}
JSON

ask "Which training triples does the model strain most to hold?" "$address/v1/self-influence?top_k=3"
