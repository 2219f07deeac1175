#!/usr/bin/env bash
# Audit every lock against known weaknesses (OSV's data base, by pip-audit). Needs the network; without it says that nothing
# was audited. Status 1 when a locked version has a known weakness, 2 when the audit itself failed.
#   make audit            ONEREC_OSV_URL: another address of OSV's query API (a mirror inside a company)
set -uo pipefail
cd "$(dirname "$0")"
audit=${1:-../.venv/audit/bin/pip-audit}
found=0
for lock in *.txt; do
	said=$("$audit" -s osv ${ONEREC_OSV_URL:+--osv-url "$ONEREC_OSV_URL"} --progress-spinner off --timeout 10 \
		--disable-pip --require-hashes -r "$lock" 2>&1) && { echo "audit   $lock: nothing known"; continue; }
	if grep -qiE "could not connect|connection ?error|timed out|max retries" <<<"$said"; then
		echo "audit   NOT DONE: the data base of weaknesses does not answer from here; run \`make audit\` where there is a network" >&2
		exit 0
	fi
	grep -q "known vulnerabilit" <<<"$said" || { echo "audit   $lock could not be read: $said" >&2; exit 2; }
	printf 'audit   %s:\n%s\n' "$lock" "$said" >&2
	found=1
done
exit $found
