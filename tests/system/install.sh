#!/bin/sh
# What the system tests need beside Python: RELION, and Ghostscript, which RELION's tools call;
# Chromium for the session page, PostgreSQL for the ledger, promtool and shellcheck for the files in cluster,
# Redis for a Ray that outlives its head, and iproute2 for machines whose cables can be pulled.
missing=""
command -v relion_refine >/dev/null 2>&1 || missing="$missing relion"
command -v gs >/dev/null 2>&1 || missing="$missing ghostscript"
command -v chromium >/dev/null 2>&1 || missing="$missing chromium"
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$missing postgresql"
command -v promtool >/dev/null 2>&1 || missing="$missing prometheus"
command -v shellcheck >/dev/null 2>&1 || missing="$missing shellcheck"
command -v redis-server >/dev/null 2>&1 || missing="$missing redis-server"
command -v ip >/dev/null 2>&1 || missing="$missing iproute2"
[ -z "$missing" ] && exit 0
if ! command -v apt-get >/dev/null 2>&1; then
  echo "make test-system needs$missing, and this system has no apt-get: install RELION 3.1 or newer so that relion_refine is on the PATH." >&2
  exit 2
fi
if [ "$(id -u)" -eq 0 ]; then as_root=""
elif sudo -n true 2>/dev/null; then as_root="sudo"
else
  echo "make test-system needs$missing: run \`sudo apt-get install$missing\` first, or make test-system as root." >&2
  exit 2
fi
echo "Installing$missing with apt-get."
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -qq && $as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null || {
  echo "make test-system could not install$missing with apt-get: see above." >&2
  exit 2
}
