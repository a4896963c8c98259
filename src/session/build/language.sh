# Runs as root in a build container, with the archive of a language on its standard input: podspawn NAME
set -eu

# The archive's own owners are those of whoever made it.
unpack() {
    tar -xzof - -C "$@"
}

link() {
    for program in "$@"; do
        ln -sf "$program" "/usr/local/bin/${program##*/}"
    done
}

mkdir -p /usr/local/bin
case $1 in
nodejs)
    # So that what npm installs for all is found.
    unpack /usr/local --strip-components=1
    rm -f /usr/local/CHANGELOG.md /usr/local/LICENSE /usr/local/README.md
    ;;
go)
    rm -rf /usr/local/go
    unpack /usr/local
    link /usr/local/go/bin/*
    ;;
python)
    rm -rf /opt/python
    mkdir -p /opt
    unpack /opt
    link /opt/python/bin/*
    ;;
rust)
    rm -rf /tmp/podspawn-rust
    mkdir /tmp/podspawn-rust
    unpack /tmp/podspawn-rust --strip-components=1
    sh /tmp/podspawn-rust/install.sh --prefix=/usr/local --without=rust-docs --disable-ldconfig
    rm -rf /tmp/podspawn-rust
    ;;
esac
