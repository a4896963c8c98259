#!/bin/bash
# Makes a database cluster if there is none, and becomes the server. Understands what the official image of postgres does:
#
#   POSTGRES_PASSWORD         the superuser's password; needed unless POSTGRES_HOST_AUTH_METHOD is trust
#   POSTGRES_USER             the superuser (postgres)
#   POSTGRES_DB               a database to make (the superuser's name)
#   POSTGRES_INITDB_ARGS      arguments for initdb
#   POSTGRES_INITDB_WALDIR    where the write-ahead log is
#   POSTGRES_HOST_AUTH_METHOD how others log in (initdb's default for passwords, scram-sha-256)
#   PGDATA                    where the cluster is
#
# Of the first four there is also NAME_FILE, a file with the value. What is in /docker-entrypoint-initdb.d is run once, in
# order, when the cluster is new: *.sh, *.sql, *.sql.gz, *.sql.xz, *.sql.zst.
set -euo pipefail

say() { printf 'entrypoint: %s\n' "$*" >&2; }
fail() { say "$@"; exit 1; }

# value NAME DEFAULT: sets the variable to its value, that of its file, or the default.
value() {
	local file="$1_FILE"
	if [ -n "${!1:-}" ] && [ -n "${!file:-}" ]; then fail "$1 and $file are both set; one of them must go"; fi
	if [ -n "${!file:-}" ]; then
		[ -r "${!file}" ] || fail "$file is ${!file}, which cannot be read"
		printf -v "$1" '%s' "$(<"${!file}")"
	else
		printf -v "$1" '%s' "${!1:-$2}"
	fi
	export "${1?}"
	unset "$file"
}

# Asks the server that is being prepared, which only its own socket leads to.
ask() {
	PGHOST='' PGHOSTADDR='' psql --no-psqlrc --set=ON_ERROR_STOP=1 --quiet --username="$POSTGRES_USER" --no-password "$@"
}

# Takes a cluster away that is not complete, so that the next start does not take it for one that is.
give_up() {
	say 'the cluster could not be prepared and is removed'
	if [ -s "$PGDATA/postmaster.pid" ]; then pg_ctl --pgdata="$PGDATA" --mode=immediate --wait --silent stop >&2; fi
	find "$PGDATA" ${POSTGRES_INITDB_WALDIR:+"$POSTGRES_INITDB_WALDIR"} -mindepth 1 -delete
}

# Runs one file of /docker-entrypoint-initdb.d.
run_file() {
	say "runs $1"
	case "$1" in
	*.sh) if [ -x "$1" ]; then "$1"; else
		# As the official image does: what it sets is seen by the next ones.
		# shellcheck source=/dev/null
		. "$1"
	fi ;;
	*.sql) ask --dbname="$POSTGRES_DB" --file="$1" ;;
	*.sql.gz) gzip -dc "$1" | ask --dbname="$POSTGRES_DB" ;;
	*.sql.xz) xz -dc "$1" | ask --dbname="$POSTGRES_DB" ;;
	*.sql.zst) zstd -dc "$1" | ask --dbname="$POSTGRES_DB" ;;
	*) say "leaves $1 alone, as it is neither *.sh nor *.sql" ;;
	esac
}

initialise() {
	value POSTGRES_PASSWORD ''
	value POSTGRES_USER postgres
	value POSTGRES_DB "$POSTGRES_USER"
	value POSTGRES_INITDB_ARGS ''
	local method=${POSTGRES_HOST_AUTH_METHOD:-}
	if [ -z "$POSTGRES_PASSWORD" ] && [ "$method" != trust ]; then
		fail 'POSTGRES_PASSWORD is not set; set it, or POSTGRES_HOST_AUTH_METHOD to trust, which lets everybody in'
	fi
	if [ "$method" = trust ]; then say 'anybody who reaches the port may do anything (POSTGRES_HOST_AUTH_METHOD is trust)'; fi
	local arguments=(--username="$POSTGRES_USER" --encoding=UTF8) password=''
	if [ -n "${POSTGRES_INITDB_WALDIR:-}" ]; then arguments+=(--waldir="$POSTGRES_INITDB_WALDIR"); fi
	# shellcheck disable=SC2016 # for eval; a file that nobody else can open, as arguments can be seen by everybody
	if [ -n "$POSTGRES_PASSWORD" ]; then password='--pwfile=<(printf "%s\n" "$POSTGRES_PASSWORD")'; fi
	local directory
	for directory in "$PGDATA" ${POSTGRES_INITDB_WALDIR:+"$POSTGRES_INITDB_WALDIR"}; do
		if [ -n "$(ls -A "$directory" 2>&1)" ]; then fail "$directory is neither empty nor a cluster"; fi
	done
	trap give_up EXIT
	# Several arguments, quoted as for a shell.
	eval "initdb \"\${arguments[@]}\" $password $POSTGRES_INITDB_ARGS" >&2
	printf '\nhost all all all %s\n' "${method:-scram-sha-256}" >>"$PGDATA/pg_hba.conf"
	# Only the socket, so that nobody takes it for ready.
	PGUSER=$POSTGRES_USER pg_ctl --pgdata="$PGDATA" --wait --silent \
		--options="$(printf '%q ' "$@" -c listen_addresses= -p "${PGPORT:-5432}")" start >&2
	export PGPASSWORD="$POSTGRES_PASSWORD"
	if [ "$POSTGRES_DB" != postgres ]; then
		# shellcheck disable=SC2016 # psql quotes the variable
		printf 'CREATE DATABASE :"name";\n' | ask --dbname=postgres --set=name="$POSTGRES_DB"
	fi
	local file
	for file in /docker-entrypoint-initdb.d/*; do
		if [ -e "$file" ]; then run_file "$file"; fi
	done
	PGUSER=$POSTGRES_USER pg_ctl --pgdata="$PGDATA" --mode=fast --wait --silent stop >&2
	unset PGPASSWORD
	trap - EXIT
}

# A first word that is an option is one for the server.
case "${1:-}" in -*) set -- postgres "$@" ;; esac
if [ "${1:-}" != postgres ]; then exec "$@"; fi
for argument in "${@:2}"; do
	case "$argument" in
	# It says something and ends.
	-'?' | --help | --describe-config | -V | --version) exec "$@" ;;
	esac
done

if [ "$(id -u)" = 0 ]; then
	for directory in "$PGDATA" /run/postgresql ${POSTGRES_INITDB_WALDIR:+"$POSTGRES_INITDB_WALDIR"}; do
		mkdir -p "$directory"
		# A volume is empty and root's at first.
		find "$directory" ! -user postgres -exec chown postgres:postgres {} +
	done
	# The server does not run as root. It starts over as its own user.
	HOME=/var/lib/postgresql exec setpriv --reuid=postgres --regid=postgres --init-groups -- "$0" "$@"
fi

mkdir -p "$PGDATA"
# The server insists on it, and says so if this is not for us to change.
chmod 0700 "$PGDATA" || true
if [ -s "$PGDATA/PG_VERSION" ]; then
	say "finds a cluster in $PGDATA"
else
	initialise "${@:2}"
fi
exec "$@"
