#!/bin/sh
# Becomes the server. Understands what the official image of redis does: arguments that begin with - or end with .conf are the
# server's, which then runs as the user redis; anything else is a command.
set -eu

case "${1:-}" in
-* | *.conf) set -- redis-server "$@" ;;
esac
if [ "${1:-}" != redis-server ]; then exec "$@"; fi

# Protected mode answers nobody but its own host as long as there is no password. In a service only the containers of its
# session can ask, so it is off unless somebody says otherwise.
case "${2:-}" in
'' | -*) said=$* ;;
*) said="$* $(cat "$2")" ;;
esac
case "$said" in
*protected-mode*) ;;
*) set -- "$@" --protected-mode no ;;
esac

if [ "$(id -u)" = 0 ]; then
	# A volume is empty and root's at first.
	find /data ! -user redis -exec chown redis:redis {} +
	exec setpriv --reuid=redis --regid=redis --init-groups -- "$@"
fi
exec "$@"
