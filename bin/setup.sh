# shellcheck shell=bash
# Sourced by the other scripts here: puts in place whatever is missing, says little, and does nothing the second time.
set -euo pipefail

root=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
cd "$root"
# Debian's commands before any that were installed beside them, ours before both.
export PATH="$root/.venv/bin:/usr/sbin:/usr/bin:/sbin:/bin:$PATH"
export ANSIBLE_CONFIG="$root/ansible.cfg"
mkdir -p "$root/.cache"

say() {
    printf '== %s\n' "$*"
}

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

require_root() {
    [ "$(id -u)" = 0 ] || die "run this as root: it manages networks, disks and libvirt"
}

# quietly NAME COMMAND...: what the command prints goes to a file, which is shown only where it fails.
quietly() {
    local log="$root/.cache/$1.log"
    shift
    "$@" >"$log" 2>&1 && return 0
    cat "$log" >&2
    die "failed: $*"
}

# install_packages PACKAGE...: apt's lists are fetched only where something is missing.
install_packages() {
    local missing package
    missing=()
    for package in "$@"; do
        [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
            missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    say "Installing ${missing[*]}"
    quietly apt apt-get update
    DEBIAN_FRONTEND=noninteractive quietly apt apt-get install --yes --no-install-recommends "${missing[@]}"
}

# install_requirements control|test: into .venv, on Debian's own Python, which has the libvirt bindings.
install_requirements() {
    local files wanted
    files=(requirements/control.txt)
    if [ "$1" != control ]; then
        install_requirements control
        files+=("requirements/$1.txt")
    fi
    wanted=$(/usr/bin/python3 --version | cat - "${files[@]}" | sha256sum)
    [ "$(cat ".venv/.$1" 2>/dev/null)" != "$wanted" ] || return 0
    if [ "$(cat .venv/.python 2>/dev/null)" != "$(/usr/bin/python3 --version)" ]; then
        say "Making .venv"
        quietly venv /usr/bin/python3 -m venv --clear --system-site-packages .venv
        /usr/bin/python3 --version >.venv/.python
    fi
    say "Installing requirements/$1.txt"
    quietly pip .venv/bin/pip install --disable-pip-version-check --no-input --requirement "requirements/$1.txt"
    printf '%s\n' "$wanted" >".venv/.$1"
}

# What prepare_hosts installs on Debian: the tests need it on this machine too.
host_packages() {
    sed -n '/^prepare_hosts_packages:/,/^[^ ]*:$/s/^  - //p' roles/prepare_hosts/vars/Debian.yml
}

# set_up control|test [PACKAGE...]
set_up() {
    local requirements=$1
    shift
    # The lock is this subshell's alone: a daemon that is started later must not inherit it.
    (
        flock 9
        install_packages ca-certificates git python3 python3-apt python3-libvirt python3-pycdlib python3-pyroute2 \
            python3-venv "$@"
        install_requirements "$requirements"
    ) 9>.cache/setup.lock
}

# This machine as the compute host of inventories/local, with the demo image.
prepare() {
    .venv/bin/python bin/credentials.py inventories/local/group_vars/all/credentials.yml
    ansible-playbook -i inventories/local playbooks/prepare_hosts.yml playbooks/demo_image.yml
}
