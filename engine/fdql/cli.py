"""The command line: finds the verb's module in `commands`, turns errors into one line and an exit
code.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from importlib import import_module

from fdql.config import BadValueError, ConfigError
from fdql.outlet import all_written, reader_is_gone, told

# Verb -> its lines of the usage; fdql.commands.<verb> has the rest.
VERBS = {
    "train": "fdql [train] [--env ID] [--seed N] [...]   train; all settings: fdql train --help",
    "resume": "fdql resume RUN [...]                      go on with a run, killed or finished",
    "eval": "fdql eval RUN [--episodes N] [...]         play episodes with a trained policy",
    "trace": "fdql trace [--seconds N] [--env ID] [...]  train long enough to record a timeline",
    "autotune": "fdql autotune [--env ID] [--out FILE]      find the engine settings faster here",
    "export": "fdql export RUN [--out policy.onnx]        the policy as an ONNX model",
    "plot": "fdql plot RUN... [--x seconds] [--out F]   draw curves: mean and interval over seeds",
    "report": "fdql report RUN... [--out page.html]       write runs as one HTML page",
    "doctor": "fdql doctor [--json]                       what this machine and installation lack",
}
_LINES = "\n       ".join(VERBS.values())
USAGE = f"""usage: {_LINES}

python main.py is the same command. An environment is a Gymnasium id (CartPole-v1) or
module:factory.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0, 1 failed, 2 wrong use, 130 interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path need not be text
    code = _run(argv)
    return code if all_written() else code or 1


def _run(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words in (["--help"], ["-h"]):
        print(USAGE, end="")
        return 0
    if words == ["--version"]:
        from fdql import __version__

        print(f"fdql {__version__}")
        return 0
    verb = words.pop(0) if words and not words[0].startswith("-") else "train"
    if verb not in VERBS:
        told(f"fdql: there is no verb {verb!r}; {', '.join(VERBS)} are\n\n{USAGE}".rstrip())
        return 2
    try:
        code: int = import_module(f"fdql.commands.{verb}").run(words)
        return code
    except ConfigError as error:
        told(f"fdql: {error}")
        return 2
    except KeyboardInterrupt:
        told("interrupted")
        return 130
    except ImportError as error:
        told(f"fdql: {_unbuilt(error)}")
        return 1
    except (BadValueError, MemoryError, OSError, RuntimeError) as error:
        if isinstance(error, BrokenPipeError) and reader_is_gone():
            return 0  # whoever read the output wanted no more of it
        told(f"fdql: {type(error).__name__}: {error}")
        return 1


def _unbuilt(error: ImportError) -> str:
    if (error.name or "").startswith("fdql.shm"):
        stale = str(error).startswith("cannot import name")
        what = (
            f"is older than its source ({error})"
            if stale
            else "is missing: this checkout was not built"
        )
        return (
            f"the compiled part {error.name} {what}. Run\n"
            '  pip install -c constraints.txt -e ".[envs]"\n'
            "in the checkout (a C++ compiler is needed), or install a wheel"
        )
    return f"{error}; pip install -c constraints.txt -e . installs what fdql needs"


if __name__ == "__main__":
    sys.exit(main())
