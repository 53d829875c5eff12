"""The command line: `fdql train` and the other verbs; every setting is a flag, generated from the
config's types.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated

from fdql.config import Config, ConfigError
from fdql.config_file import load_toml

VERBS = ("train", "eval", "trace", "autotune")
USAGE = """usage: fdql [train] [--env ID] [--seed N] [...]   train; all settings: fdql train --help
       fdql eval RUN [--episodes N] [...]         play greedy episodes with a trained policy
       fdql trace [--seconds N] [--env ID] [...]  train just long enough to record a timeline
       fdql autotune [--env ID] [--out FILE]      find the engine settings that are faster here

python main.py is the same command. An environment is a Gymnasium id (CartPole-v1) or
module:factory.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0, 1 failed, 2 wrong use, 130 interrupted."""
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
        print(
            f"fdql: there is no verb {verb!r}; {', '.join(VERBS)} are\n\n{USAGE}",
            file=sys.stderr,
            end="",
        )
        return 2
    try:
        return {"train": _train, "eval": _eval, "trace": _trace, "autotune": _autotune}[verb](words)
    except ConfigError as error:
        print(f"fdql: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except ImportError as error:
        print(f"fdql: {_unbuilt(error)}", file=sys.stderr)
        return 1
    except (MemoryError, OSError, RuntimeError) as error:
        print(f"fdql: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


def _unbuilt(error: ImportError) -> str:
    if (error.name or "").startswith("fdql.shm"):
        return (
            f"the compiled part {error.name} is missing: this checkout was not built. Run\n"
            '  pip install -c constraints.txt -e ".[envs]"\n'
            "in it (a C++ compiler is needed), or install a wheel"
        )
    return f"{error}; pip install -c constraints.txt -e . installs what fdql needs"


def _take(words: list[str], name: str, what: str, works: str) -> str | None:
    """Remove `--name VALUE` from `words`. Returns the value, None when it does not stand there."""
    for i, word in enumerate(words):
        if word == f"--{name}" or word.startswith(f"--{name}="):
            value = word.partition("=")[2] if "=" in word else "".join(words[i + 1 : i + 2])
            if not value:
                raise ConfigError(f"{name}: {what} must follow; --{name} {works} works")
            del words[i : i + (1 if "=" in word else 2)]
            return value
    return None


def _take_config_file(words: list[str]) -> Config:
    """Remove --config FILE from `words` and read it; the flags that stay beat the file."""
    name = _take(words, "config", "a TOML file", "my.toml")
    return load_toml(Path(name)) if name else Config()


def _parse(words: list[str], default: Config, verb: str, description: str) -> Config:
    """The settings: `default`, and over it the flags in `words`."""
    import tyro

    # Here and not in config.py, which processes import that have no use for tyro.
    flag = tyro.conf.arg(name="trace", metavar="SECONDS")
    Config.__annotations__["trace_seconds"] = Annotated[float | None, flag]
    return tyro.cli(
        type(default), args=words, default=default, prog=f"fdql {verb}",
        description=f"{description} --config FILE reads settings from TOML; flags beat the file.",
    )  # fmt: skip


def _train(words: list[str]) -> int:
    config = _parse(words, _take_config_file(words), "train", "Train SAC.")
    from fdql.supervisor import train

    return train(config).exit_code


def _trace(words: list[str]) -> int:
    seconds = _take(words, "seconds", "a number", "5") or "5"
    try:
        length = float(seconds)
    except ValueError:
        raise ConfigError(f"seconds = {seconds!r}: must be a number; --seconds 5 works") from None
    default = replace(_take_config_file(words), trace_seconds=length, stop_at_return="never")
    about = "Train just long enough to record --seconds N (5) of a timeline of all processes."
    config = _parse(words, default, "trace", about)
    from fdql.supervisor import train

    result = train(config, until_traced=True)
    return result.exit_code if (result.run_dir / "trace.json").is_file() else 1


@dataclass(frozen=True, kw_only=True)
class EvalArguments:
    """Play greedy episodes with a trained policy."""

    run: str
    """Run folder, or a policy.safetensors file."""
    episodes: int = 20
    """Number of episodes."""
    env: str | None = None
    """Environment, when not the one it was trained on."""
    seed: int = 0
    """Seed of the episodes' starts."""
    which: str = "best"
    """best: the policy with the best evaluation; last: the last one; 1 to 10: by rank."""


def _eval(words: list[str]) -> int:
    import tyro

    positional = (tyro.conf.PositionalRequiredArgs,)
    a = tyro.cli(EvalArguments, args=words, prog="fdql eval", config=positional)
    from fdql.play import evaluate, load

    result = evaluate(load(a.run, a.which), a.env, a.episodes, a.seed)
    low_high = result.interval
    interval = f"95 % of the mean {low_high[0]:.1f} to {low_high[1]:.1f}, " if low_high else ""
    print(
        f"{result.mean:.1f} +- {result.std:.1f} over {a.episodes} episodes "
        f"({interval}min {result.returns.min():.1f}, max {result.returns.max():.1f}, "
        f"mean length {result.lengths.mean():.0f})"
    )
    return 0


@dataclass(frozen=True, kw_only=True)
class AutotuneArguments(Config):
    """Settings of the runs to tune: one that you give is kept, the others may be changed."""

    seconds: float = 60.0
    """Time to spend, seconds."""
    out: Path = Path("tuned.toml")
    """File for the result, read by fdql train --config."""
    force: bool = False
    """Overwrite that file."""


def _autotune(words: list[str]) -> int:
    given = _take_config_file(words)
    names = [f.name for f in fields(Config)]
    default = AutotuneArguments(**{n: getattr(given, n) for n in names})
    about = "Find the engine settings that are faster here, in short real runs."
    arguments = _parse(words, default, "autotune", about)
    assert isinstance(arguments, AutotuneArguments)
    from fdql.autotune import autotune

    config = Config(**{n: getattr(arguments, n) for n in names})
    autotune(config, seconds=arguments.seconds, out=arguments.out, force=arguments.force)
    return 0


if __name__ == "__main__":
    sys.exit(main())
