#!/bin/sh
# Becomes the server. Understands what the official image of nginx does: what is in /docker-entrypoint.d runs first (*.envsh is
# read, *.sh is run if it is executable), and *.template files in NGINX_ENVSUBST_TEMPLATE_DIR (/etc/nginx/templates) get the values
# of variables put in and become files in NGINX_ENVSUBST_OUTPUT_DIR (/etc/nginx/conf.d). NGINX_ENVSUBST_TEMPLATE_SUFFIX is another
# ending, NGINX_ENVSUBST_FILTER an expression for the names of the variables; NGINX_ENTRYPOINT_QUIET_LOGS says nothing of it.
set -eu

say() { [ -n "${NGINX_ENTRYPOINT_QUIET_LOGS:-}" ] || printf 'entrypoint: %s\n' "$*" >&2; }

templates() {
	from=${NGINX_ENVSUBST_TEMPLATE_DIR:-/etc/nginx/templates}
	to=${NGINX_ENVSUBST_OUTPUT_DIR:-/etc/nginx/conf.d}
	suffix=${NGINX_ENVSUBST_TEMPLATE_SUFFIX:-.template}
	[ -d "$from" ] || return 0
	# Only variables that are set: nginx has ones of the same form.
	names=$(env | sed -n 's/^\([A-Za-z_][A-Za-z0-9_]*\)=.*/\1/p' | grep -E "${NGINX_ENVSUBST_FILTER:-}" | sed 's/.*/${&}/') || true
	find "$from" -type f -name "*$suffix" | while IFS= read -r template; do
		file=$to/${template#"$from"/}
		file=${file%"$suffix"}
		mkdir -p "${file%/*}"
		say "writes $file"
		envsubst "$names" <"$template" >"$file"
	done
}

case "${1:-}" in -*) set -- nginx "$@" ;; esac
case "${1:-}" in
nginx | nginx-debug)
	for file in /docker-entrypoint.d/*; do
		case "$file" in
		*.envsh)
			say "reads $file"
			# shellcheck source=/dev/null
			. "$file"
			;;
		*.sh) if [ -x "$file" ]; then
			say "runs $file"
			"$file"
		else say "leaves $file alone, as it is not executable"; fi ;;
		esac
	done
	templates
	;;
esac
exec "$@"
