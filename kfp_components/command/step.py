"""Run one `onerec` command: what Airflow's rollback and housekeeping do where its own image holds no `onerec`.

    run(["release", "rollback", "--root", "/var/onerec", "--source", "simulated"])

Only commands that act on the present are taken: a day has pipelines of its own.
"""

from __future__ import annotations

import subprocess
import sys

TAKEN = (("release", "rollback"), ("housekeeping",))


def run(arguments: list[str]) -> str:
    """The last line that the command printed. ValueError for another command, RuntimeError when it fails."""
    words = [str(argument) for argument in arguments]
    if not any(tuple(words[: len(taken)]) == taken for taken in TAKEN):
        raise ValueError(f"onerec {' '.join(words[:2])} is not run from Airflow; {', '.join(map(' '.join, TAKEN))} are")
    # A process of its own: this room lies below the command line and knows nothing of it.
    done = subprocess.run([sys.executable, "-m", "cli.main", *words], capture_output=True, text=True)
    print(done.stdout + done.stderr, flush=True)
    if done.returncode:
        raise RuntimeError(
            f"onerec {' '.join(words)} ended with status {done.returncode}: {done.stderr.strip()[-500:]}"
        )
    return (done.stdout.strip().splitlines() or [""])[-1]
