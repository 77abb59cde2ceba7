#!/bin/sh
# Rebuild the index of a model that was just trained, and tidy up: the hook to call from a training pipeline.
#
#     KGTRACE_INDEX=/srv/kgtrace/index nightly.sh MODEL [ARGUMENT OF kgtrace build]...
#
# Exit code 0: the new generation is live, and a running service loads it within seconds. Any other: the generation that
# was live still is, the reason is on standard error, and running it again goes on where it ended.

set -eu
: "${KGTRACE_INDEX:?names the index root}"
model=${1:?the folder of the trained model}
shift

kgtrace build --model "$model" --gate-report "$KGTRACE_INDEX/gate-report.json" "$@"
kgtrace prune --keep "${KGTRACE_KEEP:-7}"
