# Shared by the scripts beside it: builds the Rust package $1, of those in the folder tool, and runs it with the other arguments.
# What it builds and runs is of the repository of $self, the script that was called, wherever that has been copied or linked
# to: cargo tells the package.
front_end() {
    package=$1
    shift
    scripts=$(CDPATH= cd -- "$(dirname -- "$self")" && pwd -P) || exit 1
    if ! command -v cargo >/dev/null 2>&1 && [ -x "$HOME/.cargo/bin/cargo" ]; then
        PATH=$HOME/.cargo/bin:$PATH
    fi
    if ! command -v cargo >/dev/null 2>&1; then
        echo "error: cargo is missing: install Rust's stable toolchain with rustup (https://rustup.rs)" >&2
        exit 1
    fi
    if ! command -v cc >/dev/null 2>&1; then
        echo "error: a C compiler is missing, which Rust links with: install gcc (on macOS: xcode-select --install)" >&2
        exit 1
    fi
    # Cargo is silent unless it builds the package for the first time, which takes a while.
    quiet=--quiet
    # The package works in other folders than this one.
    case ${CARGO_TARGET_DIR:-/} in
        /*) ;;
        *) export CARGO_TARGET_DIR="$PWD/$CARGO_TARGET_DIR" ;;
    esac
    [ -x "${CARGO_TARGET_DIR:-$scripts/../target}/debug/$package" ] || quiet=
    unset CARGO_BUILD_TARGET
    exec cargo run $quiet --manifest-path "$scripts/../Cargo.toml" -p "$package" -- "$@"
}
