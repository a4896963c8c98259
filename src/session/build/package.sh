# Runs as root in a build container, with whatever sh the image has: podspawn ACTION [NAME [VERSION]]
#
#   lists     gets the lists of what there is to install
#   install   installs NAME, in VERSION or one that begins with it; ends with 64 for a language that the image's own packages
#             do not have in that version, after saying which C library programs from elsewhere have to be made for; standard
#             input may have a tar of files for /var/cache
#   wants     says which files would be downloaded to install NAME, each with its name below /var/cache, size and checksum
set -eu
action=$1 name=${2-} version=${3-}

manager=none
for program in apt-get apk dnf microdnf yum; do
    if command -v "$program" >/dev/null 2>&1; then
        manager=$program
        break
    fi
done

# Passes on the first line that is $1, or goes on where $1 ends.
matching() {
    while read -r line; do
        # Without the epoch.
        case ${line#*:} in
        "$1" | "$1"[!0-9a-zA-Z]*) printf '%s\n' "$line"; return ;;
        esac
    done
}

# The versions that there are of a package, the best first.
versions() {
    case $manager in
    apt-get) apt-cache madison "$1" | while IFS='| ' read -r _ known _; do printf '%s\n' "$known"; done ;;
    apk) apk list --available "$1" 2>/dev/null | while read -r line _; do
        case $line in "$1"-[0-9]*) printf '%s\n' "${line#"$1"-}" ;; esac
    done ;;
    dnf | microdnf | yum) "$manager" -q repoquery --queryformat '%{version}-%{release}
' "$1" 2>/dev/null | grep . | sort -rV ;;
    esac
}

# apt-get with a directory of our own for what it downloads: images made for Docker empty the usual one.
apt_install() {
    apt-get install -y --no-install-recommends -o APT::Keep-Downloaded-Packages=true \
        -o Dir::Cache::Archives=/var/cache/apt/podspawn/ "$@"
}

# dnf, if it is the one that is written in Python, with a change: it says what it would download, and ends. A program that was
# compiled does not begin with the name of an interpreter.
dnf_wants() {
    interpreter=
    read -r interpreter <"$(command -v "$manager")" || true
    case $interpreter in '#!'*python*) ;; *) return 0 ;; esac
    ${interpreter#??} -c '
import os, sys
import dnf, dnf.cli.main

def say(base, packages, *_, **__):
    for package in packages:
        kind, digest = package.returnIdSum()
        name = os.path.relpath(package.localPkg(), "/var/cache")
        print("podspawn: wants", name, package.downloadsize, kind + ":" + digest)
    sys.exit()

dnf.Base.download_packages = say
dnf.cli.main.main(sys.argv[1:])
' "$@"
}

dnf_options='-y --setopt=install_weak_deps=False --setopt=tsflags=nodocs --setopt=keepcache=True'

# Says what would be downloaded to install packages.
# shellcheck disable=SC2046,SC2086
wants() {
    case $manager in
    apt-get)
        apt_install -qq --print-uris -o Acquire::ForceHash=SHA256 "$@" | while read -r _ file size sum; do
            echo "podspawn: wants apt/podspawn/$file $size sha256:${sum#SHA256:}"
        done
        ;;
    dnf | yum) dnf_wants install -q $dnf_options $(dashed "$@") ;;
    esac
}

# Installs packages, each perhaps as NAME=VERSION.
# shellcheck disable=SC2046,SC2086
install() {
    if [ "$action" = wants ]; then
        wants "$@"
        return
    fi
    case $manager in
    apt-get) apt_install "$@" ;;
    apk) apk add "$@" ;;
    dnf | yum) "$manager" install $dnf_options $(dashed "$@") ;;
    microdnf) microdnf install -y --setopt=install_weak_deps=0 --nodocs $(dashed "$@") ;;
    none)
        echo "the image has none of the known package managers: apt-get, apk, dnf, microdnf, yum" >&2
        exit 1
        ;;
    esac
}

# As dnf has it: NAME-VERSION. There are no blanks in either.
dashed() {
    for package in "$@"; do
        case $package in *=*) printf '%s ' "${package%%=*}-${package#*=}" ;; *) printf '%s ' "$package" ;; esac
    done
}

# Whether the package $1 is there in the version that is wanted; which one is then in $found.
is_there() {
    found=$(versions "$1" | matching "$version")
    [ -n "$found" ]
}

no_version() {
    echo "there is no version $version of $name; there are: $(versions "$name" | sort -u | tr '\n' ' ')" >&2
    exit 1
}

elsewhere() {
    libc=gnu
    for loader in /lib/ld-musl-*; do
        if [ -e "$loader" ]; then libc=musl; fi
    done
    echo "podspawn: elsewhere $libc"
    exit 64
}

# A language by the distribution's names for it. Debian's node has its package manager in a package of its own, and keeps go and
# python of several versions side by side.
language() {
    case $manager:$name in
    apt-get:nodejs | apk:nodejs) main=nodejs more=npm ;;
    *:nodejs) main=nodejs more=nodejs-npm ;;
    apt-get:python) main=python3 more=python3-venv ;;
    *:python) main=python3 more= ;;
    apt-get:go) main=golang-go more= ;;
    apk:go) main=go more= ;;
    *:go) main=golang more= ;;
    apt-get:rust) main=rustc more=cargo ;;
    *:rust) main=rust more=cargo ;;
    esac
    if [ -z "$version" ]; then
        # shellcheck disable=SC2086
        install $main $more
        return
    fi
    case $manager:$name in
    none:*) elsewhere ;;
    apt-get:go)
        is_there "golang-$version-go" || [ -n "$(versions "golang-$version-go")" ] || elsewhere
        install "golang-$version-go"
        [ "$action" = wants ] || for program in go gofmt; do ln -sf "/usr/lib/go-$version/bin/$program" "/usr/local/bin/$program"; done
        ;;
    apt-get:python)
        if is_there python3; then
            install "python3=$found" python3-venv
        elif [ -n "$(versions "python$version")" ]; then
            install "python$version" "python$version-venv"
        else
            elsewhere
        fi
        ;;
    *)
        is_there "$main" || elsewhere
        # shellcheck disable=SC2086
        install "$main=$found" $more
        ;;
    esac
}

case $action in
lists)
    case $manager in
    apt-get) apt-get update ;;
    apk) apk update ;;
    dnf | microdnf | yum) "$manager" -y makecache ;;
    esac
    ;;
install | wants)
    case $manager in apt-get) mkdir -p /var/cache/apt/podspawn/partial ;; esac
    # What has not come whole is downloaded.
    [ "$action" = wants ] || tar -xof - -C /var/cache 2>/dev/null || true
    case $name in
    nodejs | python | go | rust)
        if [ "$manager" = none ] && [ -n "$version" ]; then elsewhere; fi
        language
        ;;
    *)
        if [ -z "$version" ]; then
            install "$name"
        elif is_there "$name"; then
            install "$name=$found"
        else
            no_version
        fi
        ;;
    esac
    ;;
esac
