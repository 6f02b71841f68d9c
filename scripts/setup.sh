#!/usr/bin/env bash
# Installs what building and testing need and this machine lacks. Quick and silent where everything is there.
#
#   scripts/setup.sh           install what is missing (as root, or through sudo)
#   scripts/setup.sh --check   only say what is missing; exit 1 if anything is
set -euo pipefail

# libfuse 2's helper lives in a folder of its own: Debian's package `fuse` conflicts with `fuse3`.
readonly libfuse2=/usr/local/lib/libfuse2/bin
# One program of a large package, whose service nobody wants to be started.
readonly prometheus=/usr/local/lib/prometheus/bin
readonly fusectl=/sys/fs/fuse/connections

# Command that must be there, and the Debian package that has it.
readonly commands=(
  "cc gcc"
  "fusermount3 fuse3"
  "flock util-linux"
  "shellcheck shellcheck"
  "strace strace"
  "fish fish"
  "zsh zsh"
  "mandoc mandoc"
)

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

missing_packages() {
  local entry
  for entry in "${commands[@]}"; do
    command -v "${entry% *}" >/dev/null || printf '%s\n' "${entry#* }"
  done
}

# Each step: `wants_X` says what is missing (nothing: all is there), `install_X` mends it.

wants_packages() {
  local packages
  packages=$(missing_packages | paste -sd' ')
  [ -z "$packages" ] || printf 'Debian packages: %s\n' "$packages"
}
install_packages() {
  local packages
  mapfile -t packages < <(missing_packages)
  refresh_apt
  DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "${packages[@]}" >&2
}

# A helper counts only with its set-uid bit: an ordinary user cannot mount with it otherwise.
wants_libfuse2() {
  [ -u "$libfuse2/fusermount" ] && "$libfuse2/fusermount" -V 2>/dev/null | grep -q ' 2\.' ||
    printf 'the fusermount of libfuse 2, set-uid root, in %s (from the Debian package fuse)\n' "$libfuse2"
}
install_libfuse2() {
  install_from fuse bin/fusermount 4755 "$libfuse2/fusermount"
}

# 19 MB to download, 50 MB of which are kept.
wants_prometheus() {
  command -v prometheus >/dev/null || [ -x "$prometheus/prometheus" ] ||
    printf 'prometheus in %s (from the Debian package of that name)\n' "$prometheus"
}
install_prometheus() {
  install_from prometheus usr/bin/prometheus 755 "$prometheus/prometheus"
}

# install_from PACKAGE FILE MODE PLACE: installs one file of a Debian package, and nothing else of it.
install_from() {
  local folder='' status
  refresh_apt &&
    folder=$(mktemp -d) &&
    # apt's unprivileged download user must be able to write here.
    chmod 0777 "$folder" &&
    (cd "$folder" && apt-get download --quiet "$1" >&2) &&
    dpkg-deb --extract "$folder/$1"_*.deb "$folder/unpacked" &&
    install -D --owner root --group root --mode "$3" "$folder/unpacked/$2" "$4"
  status=$?
  [ -z "$folder" ] || rm -rf "$folder"
  return "$status"
}

wants_device() {
  # Debian's udev rule gives this mode; machines without udev have 0600 or nothing.
  [ -c /dev/fuse ] && [ "$(stat --format %a /dev/fuse)" = 666 ] || printf '/dev/fuse with mode 0666\n'
}
install_device() {
  [ -c /dev/fuse ] || mknod /dev/fuse c 10 229
  chmod 0666 /dev/fuse
}

# Without it nobody can say how many requests a mount has not answered, or abort a connection.
wants_fusectl() {
  mountpoint --quiet "$fusectl" || printf 'fusectl mounted on %s\n' "$fusectl"
}
install_fusectl() {
  grep -qw fusectl /proc/filesystems || modprobe fuse
  mount -t fusectl fusectl "$fusectl"
}

refreshed=no
refresh_apt() {
  [ "$refreshed" = no ] || return 0
  apt-get update --quiet >&2
  refreshed=yes
}

# The formatter and the linter belong to the caller's toolchain, not to root's.
rust_components() {
  local component
  command -v cargo >/dev/null || die "there is no cargo: install Rust from https://rustup.rs"
  for component in fmt clippy; do
    cargo "$component" --version >/dev/null 2>&1 && continue
    case "$1" in
      check) printf 'cargo %s\n' "$component" ;;
      install) rustup component add "${component/#fmt/rustfmt}" >&2 ;;
    esac
  done
}

readonly steps=(packages libfuse2 prometheus device fusectl)

main() {
  local mode="${1:-install}" step wanted list=""
  case "$mode" in
    install | --check) ;;
    *) die "usage: scripts/setup.sh [--check]" ;;
  esac

  for step in "${steps[@]}"; do
    wanted=$("wants_$step")
    [ -z "$wanted" ] || list+="  $wanted"$'\n'
  done

  if [ "$mode" = --check ]; then
    list+=$(rust_components check)
    [ -z "$list" ] && return 0
    say "missing:"$'\n'"$list"
    return 1
  fi

  # Called again through sudo below, where the toolchain is not root's business.
  [ -n "${SETUP_AS_ROOT:-}" ] || rust_components install
  [ -n "$list" ] || return 0

  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || die "not root, and there is no sudo. As root, provide:"$'\n'"$list"
    exec sudo SETUP_AS_ROOT=1 "$0"
  fi
  for step in "${steps[@]}"; do
    wanted=$("wants_$step")
    [ -n "$wanted" ] || continue
    say "installing $wanted"
    if [ "$step" = prometheus ]; then
      # One test needs it, and says so where it is skipped.
      "install_$step" || say "there is none: what needs it will be skipped"
      continue
    fi
    "install_$step"
    wanted=$("wants_$step")
    [ -z "$wanted" ] || die "still missing after installing: $wanted"
  done
}

main "$@"
