#!/bin/sh
# Launch a command in a scope of its own, with a helper beside it, using only varlinkctl(1) and jq(1).
#
#     launcher.sh NAME COMMAND [ARGUMENT]...
#
# The command gets the path of the helper's socket in $HELPER and the name of its scope in $SCOPE.
set -eu
socket=${MOORAGE_ADDRESS:-/run/moorage/io.moorage.Machine}
name=$1
shift

# The shell that becomes the command must be in its scope first; it waits for a line with what is known only then.
pipe=$(mktemp -u "${TMPDIR:-/tmp}/launcher.XXXXXX")
mkfifo -m 600 "$pipe"
sh -c 'read -r SCOPE HELPER && export SCOPE HELPER && exec "$@" </dev/null' sh "$@" <"$pipe" &
leader=$!
exec 9>"$pipe" # if this script dies, the shell reads end of file, and ends
rm "$pipe"

machine=$(varlinkctl --json=short call "$socket" io.moorage.Machine.Register '{
    "name": "'"$name"'", "class": "vm", "leader": {"pid": '"$leader"'},
    "helpers": [{
        "name": "echo", "execStart": ["/usr/bin/socat", "ACCEPT-FD:3,fork", "EXEC:cat"],
        "sockets": [{"name": "echo.sock"}], "onFailure": "stopMachine"
    }]
}')
echo "$machine" | jq -r '"\(.machine.unit) \(.machine.runtimeDirectory)/echo.sock"' >&9
exec 9>&-
trap 'varlinkctl --quiet call "$socket" io.moorage.Machine.Stop "{\"name\": \"$name\"}" >/dev/null' INT TERM
status=0
wait "$leader" || status=$?
exit "$status"
