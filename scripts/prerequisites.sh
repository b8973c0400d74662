# Sourced by scripts/test, scripts/demo and scripts/bench: finds cargo, installs what is missing,
# and says where the built binary is. Sets CARGO (an array) and defines the functions below.

die() {
    printf 'error: %s\n' "$1" >&2
    [[ -z ${2:-} ]] || printf 'hint: %s\n' "$2" >&2
    exit 1
}

# need_packages PROGRAM:PACKAGE…: installs the packages whose program (or file, if it begins with a
# slash) is missing, as root on a Debian-like machine; otherwise says which they are.
need_packages() {
    local pair program package missing=()
    for pair in "$@"; do
        program=${pair%%:*} package=${pair##*:}
        if [[ $program == /* ]]; then
            compgen -G "$program" >/dev/null || missing+=("$package")
        else
            # Administrators' programs are not on everybody's PATH.
            PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || missing+=("$package")
        fi
    done
    ((${#missing[@]})) || return 0
    ((EUID == 0)) || die "missing: ${missing[*]}" "install them: sudo apt-get install ${missing[*]}"
    command -v apt-get >/dev/null || die "missing: ${missing[*]}" "install them with this system's package manager"
    printf 'installing %s\n' "${missing[*]}"
    # The lists of a fresh machine may be older than what the mirror still has.
    if ! DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        "${missing[@]}" >/dev/null 2>&1; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            "${missing[@]}" >/dev/null
    fi
}

# need_cargo builder|root: finds cargo. Under sudo it is the caller's. A builder then runs as the
# caller, so that no file in the clone ends up belonging to root; tests that need root run as root.
need_cargo() {
    local home
    CARGO=(cargo)
    command -v cargo >/dev/null && return 0
    if ((EUID == 0)) && [[ -n ${SUDO_USER:-} && $SUDO_USER != root ]]; then
        home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
        if [[ -x $home/.cargo/bin/cargo ]]; then
            CARGO=(env "CARGO_HOME=$home/.cargo" "RUSTUP_HOME=$home/.rustup"
                "PATH=$home/.cargo/bin:$PATH" cargo)
            [[ $1 != builder ]] || CARGO=(setpriv --reuid "$SUDO_UID" --regid "$SUDO_GID"
                --init-groups "${CARGO[@]:0:1}" "HOME=$home" "${CARGO[@]:1}")
            return 0
        fi
    fi
    if [[ -x $HOME/.cargo/bin/cargo ]]; then
        PATH=$HOME/.cargo/bin:$PATH
        return 0
    fi
    die 'cargo is missing' \
        'install Rust 1.95 or newer with rustup; Debian 12 ships an older one'
}

# target_directory: where cargo puts what it builds.
target_directory() {
    "${CARGO[@]}" metadata --format-version 1 --no-deps |
        sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}

# binary_of PROFILE_DIRECTORY: where cargo puts `worker`.
binary_of() {
    local target triple
    target=$(target_directory)
    triple=$("${CARGO[@]}" -vV | sed -n 's/^host: //p')
    printf '%s/%s/%s/worker\n' "$target" "$triple" "$1"
}
