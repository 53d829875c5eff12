"""Runs of `fdql train` under limits that need a superuser: mounts, another user, address space.

    python tests/stress/limits.py [NAME ...]

Each case is a command in a mount namespace of its own, with the exit code and the words that must
be there. A hang fails; so does a process that is left.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HANG_SECONDS = 300
ROOT = Path(__file__).parents[2]
SHORT = "--env CartPole-v1 --stop-at-return never --total-timesteps 3000 --run-dir runs/a"
TRAIN = f"{sys.executable} {ROOT / 'main.py'} {SHORT}"
NO_MEMFD = (
    f"{sys.executable} -c \"import os, sys; sys.path.insert(0, '{ROOT / 'engine'}')\n"
    "def refused(*_): raise OSError(38, 'Function not implemented')\n"
    "os.memfd_create = refused\n"
    f"from fdql.cli import main; sys.exit(main('{SHORT}'.split()))\""
)
NOBODY = "setpriv --reuid 65534 --regid 65534 --clear-groups"
READ_ONLY = (
    f"mount --bind {ROOT} {ROOT} && mount -o remount,bind,ro {ROOT} && export HOME=/proc/1 "
    "TMPDIR=$PWD/tmp && mkdir tmp &&"
)
FULL = "mkdir runs && mount -t tmpfs -o size=64k tmpfs runs"

# name -> shell command, exit codes, words of its output
CASES: dict[str, tuple[str, set[int], tuple[str, ...]]] = {
    "64 MB of /dev/shm": (
        f"mount -t tmpfs -o size=64m tmpfs /dev/shm && {TRAIN}", {0}, ("kept in runs/a",),
    ),
    "64 MB of /dev/shm, no memfd": (
        f"mount -t tmpfs -o size=64m tmpfs /dev/shm && {NO_MEMFD}", {0}, ("kept in runs/a",),
    ),
    "256 KB of /dev/shm, no memfd": (
        f"mount -t tmpfs -o size=256k tmpfs /dev/shm && {NO_MEMFD}", {1},
        ("of /dev/shm: No space left on device", "fewer workers"),
    ),
    "64 descriptors": (f"ulimit -n 64 && {TRAIN}", {0}, ("kept in runs/a",)),
    "disk full during the run": (
        f"{FULL} && {TRAIN}", {1}, ("No space left on device", "total_timesteps: 3,0"),
    ),
    "disk full before it": (
        f"{FULL} && cat /dev/zero 2>/dev/null > runs/zeros; {TRAIN}; code=$?; ls runs; exit $code",
        {2}, ("run_dir = 'runs/a'", "No space left on device", "zeros"),
    ),
    "install and home read-only": (
        f"{READ_ONLY} {TRAIN} && ls tmp/fdql-0", {0}, ("kept in runs/a", "sac_"),
    ),
    "nowhere to keep kernels": (
        f"{READ_ONLY} mkdir tmp/fdql-0 && mount -t tmpfs -o ro tmpfs tmp/fdql-0 && {TRAIN}", {0},
        ("kept in runs/a",),
    ),
    "no permission": (
        f"chmod 755 . && {NOBODY} {TRAIN}", {2}, ("run_dir = 'runs/a'", "Permission denied"),
    ),
    **{
        f"{mib} MiB of address space": (
            f"ulimit -v {mib << 10} && {TRAIN}", {2}, ("MiB of address space here (ulimit -v",),
        )
        for mib in (200, 300, 400, 500)
    },
    **{
        f"{mib} MiB of address space": (f"ulimit -v {mib << 10} && {TRAIN}", {0, 1}, ())
        for mib in (585, 700)
    },
}  # fmt: skip


def left(folder: str) -> list[str]:
    """Processes of the run in `folder` that live, as words of pgrep."""
    found = subprocess.run(["pgrep", "-f", folder], capture_output=True, text=True)
    return found.stdout.split()


def main(names: list[str]) -> int:
    """Run the cases. Returns 1 when one is not as it should be."""
    if os.getuid() != 0:
        print("a superuser is needed: mounts, another user")
        return 2
    wrong = 0
    for name, (command, codes, says) in CASES.items():
        if names and not any(n in name for n in names):
            continue
        t0 = time.monotonic()
        faults = []
        with tempfile.TemporaryDirectory(prefix="fdql-limits-") as folder:
            process = subprocess.Popen(
                ["unshare", "-m", "bash", "-c", command], cwd=folder, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                said, _ = process.communicate(timeout=HANG_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                said, _ = process.communicate()
                faults.append(f"a hang of {HANG_SECONDS} s")
            if left(folder):
                faults.append(f"left: {left(folder)}")
        code = process.returncode
        faults += [repr(s) for s in says if s not in said]
        faults += [] if code in codes else [f"exit code {code}"]
        faults += ["a traceback"] if "Traceback" in said and code == 2 else []
        faults += [] if said.strip() else ["says nothing"]
        wrong += bool(faults)
        lines = said.strip().splitlines()
        last = next((line for line in reversed(lines) if ": " in line), "")
        print(
            f"{name:32} exit {code:>3} {time.monotonic() - t0:6.1f} s  "
            f"{'WRONG: ' + ', '.join(faults) if faults else last[:150]}",
            flush=True,
        )
        if faults:
            print(said[-3000:])
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
