"""Every setting with its unit, default and source: as a commented config file (`fdql train
--print-config`) and as docs/settings.md, which `python -m fdql.settings` prints.

What a setting means is said by the docstring behind its field in config.py; the unit of its number
and where its default comes from stand here, one line for each.
"""

from __future__ import annotations

import ast
import itertools
import typing
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import tomli_w

from fdql import config as declarations
from fdql.config import Config

# Key: (unit, source of the default). "ours": chosen, not measured.
ABOUT = {
    "env": ("name", "the smallest environment that learns in seconds"),
    "seed": ("number", "convention"),
    "total_timesteps": ("environment steps", "ours"),
    "stop_at_return": ("mean return", "Gymnasium's registered threshold; docs/adr/0004"),
    "stop_without_improvement": ("evaluations", "ours"),
    "serial": ("switch", "ours"),
    "workers": ("processes", "the environment's measured step and the cores; docs/adr/0010"),
    "envs_per_worker": ("environments", "8 in all, docs/adr/0010; images 16, docs/adr/0012"),
    "ratio": ("samples per environment step", "trials on small tasks; docs/adr/0012, 0016"),
    "device": ("choice", "a GPU is untested"),
    "learner": ("choice", "docs/adr/0001; images docs/adr/0012"),
    "run_dir": ("path", "ours"),
    "checkpoint_every": ("seconds", "cost measured, bench/README.md; docs/adr/0014"),
    "checkpoint_keep": ("checkpoints", "ours; docs/adr/0014"),
    "trace_seconds": ("seconds", "off; docs/adr/0007"),
    "check": ("switch", "off: it costs time"),
    "tensorboard": ("switch", "off"),
    "wandb": ("switch", "off"),
    "sac.discount": ("per environment step", "Haarnoja 2018"),
    "sac.target_rate": ("share per update", "trials: at 32 samples per insert 0.01 is too slow"),
    "sac.batch_size": ("transitions", "Haarnoja 2018"),
    "sac.critic_width": ("units", "trials: on a CPU as good as 256 at half the time"),
    "sac.actor_width": ("units", "trials, as critic_width"),
    "sac.learning_rate": ("per update", "trials; images docs/adr/0012"),
    "sac.temperature_learning_rate": ("per update", "trials"),
    "sac.weight_decay": ("per unit of learning rate", "Loshchilov 2019, small"),
    "sac.gradient_clip": ("Euclidean norm", "ours; rarely reached"),
    "sac.head": ("choice", "HL-Gauss, Farebrother 2024"),
    "sac.bins": ("bins", "Farebrother 2024"),
    "sac.v_max": ("scaled reward units", "the reward scale keeps returns within (FlashSAC)"),
    "sac.sigma_bins": ("bins", "Farebrother 2024"),
    "sac.quantiles": ("quantiles", "Kuznetsov 2020"),
    "sac.quantiles_dropped": ("quantiles per critic", "Kuznetsov 2020"),
    "sac.quantile_huber": ("scaled reward units", "Kuznetsov 2020"),
    "sac.entropy_backup": ("share", "Yu 2022 (arXiv 2201.12434)"),
    "sac.init_temperature": ("scaled reward units", "trials"),
    "sac.min_temperature": ("scaled reward units", "ours"),
    "sac.target_std": ("standard deviation, actions in -1..1", "FlashSAC"),
    "sac.target_std_updates": ("updates", "docs/adr/0016"),
    "sac.target_epsilon": ("probability", "trials"),
    "sac.image_dtype": ("choice", "docs/adr/0012"),
    "sac.image_shift": ("share of the side", "Kostrikov 2021; docs/adr/0020"),
    "sac.pessimism": ("share", "docs/adr/0013"),
    "sac.policy_delay": ("updates", "Fujimoto 2018 (TD3)"),
    "replay.capacity": ("transitions", "Mnih 2015, and what fits 2 GiB"),
    "replay.n_step": ("environment steps", "Hessel 2018 (Rainbow)"),
    "replay.priority_exponent": ("exponent", "Fujimoto 2020 (LAP)"),
    "replay.staged_batches": ("batches", "ours"),
    "explore.warmup_steps": ("environment steps", "trials"),
    "explore.explorer_share": ("share", "trials"),
    "explore.explorer_std_factor": ("factor", "trials"),
    "explore.explorer_min_std": ("standard deviation before tanh", "trials"),
    "explore.explorer_steps": ("environment steps", "docs/adr/0013"),
    "explore.explorer_epsilon": ("probability per step", "trials"),
    "explore.hold_exponent": ("exponent", "Dabney 2021"),
    "explore.hold_longest": ("environment steps", "trials"),
    "explore.policy_hold_longest": ("environment steps", "FlashSAC; docs/adr/0013"),
    "engine.groups": ("groups", "one steps while one waits"),
    "engine.chunk_rows": ("rows", "ours"),
    "engine.commit_rows": ("rows", "ours"),
    "engine.commit_ms": ("milliseconds", "ours"),
    "engine.ring_chunks": ("chunks", "ours"),
    "engine.publish_updates": ("updates", "trials"),
    "engine.publish_seconds": ("seconds", "ours"),
    "engine.learner_threads": ("threads", "docs/adr/0010, docs/adr/0015"),
    "engine.spin_us": ("microseconds", "measured, docs/LOG.md"),
    "engine.ahead_updates": ("updates", "docs/adr/0003"),
    "engine.restarts": ("restarts", "ours"),
    "engine.restart_window": ("seconds", "ours"),
    "engine.heartbeat_timeout": ("seconds", "ours"),
    "engine.start_timeout": ("seconds", "ours"),
    "eval.episodes": ("episodes", "20; Pendulum 100, for its starts vary; Atari 10 whole games"),
    "eval.every_steps": ("environment steps", "ours"),
    "eval.share": ("share of the time", "ours"),
    "eval.longest_episode": ("environment steps", "Atari's 108,000 frames"),
    "eval.epsilon": ("probability", "docs/adr/0021"),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. `default` is None where it is derived or off; `text` says what it means."""

    key: str
    kind: str
    default: Any
    unit: str
    source: str
    text: str

    @property
    def flag(self) -> str:
        """Its flag on the command line."""
        return "--trace" if self.key == "trace_seconds" else f"--{self.key.replace('_', '-')}"


def settings() -> list[Setting]:
    """All of them: those at the top first, then table by table. KeyError names a key without a line
    in ABOUT.
    """
    tables = [f.name for f in fields(Config) if is_dataclass(get_type_hints(Config)[f.name])]
    found = list(_of(Config, ""))
    for table in tables:
        found += _of(get_type_hints(Config)[table], f"{table}.")
    return found


def _of(kind: type[Any], prefix: str) -> Iterator[Setting]:
    hints, texts = get_type_hints(kind), _texts(kind.__name__)
    for f in fields(kind):
        if f.default is MISSING:
            continue  # a table
        key = prefix + f.name
        if key not in ABOUT:
            raise KeyError(f"{key} has no line in ABOUT of {__name__}: its unit, and its source")
        yield Setting(key, _kind(hints[f.name]), f.default, *ABOUT[key], texts[f.name])


def _texts(class_name: str) -> dict[str, str]:
    """Field -> the docstring behind it, on one line."""
    tree = ast.parse(Path(declarations.__file__).read_text(encoding="utf-8"))
    body = next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == class_name)
    out = {}
    for field, after in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr):
            assert isinstance(field.target, ast.Name)
            out[field.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return out


def _kind(hint: Any) -> str:
    """A type as people say it."""
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(typing.get_args(hint))
    names = {int: "integer", float: "number", bool: "true or false", str: "text"}
    options = [o for o in typing.get_args(hint) or (hint,) if o is not type(None)]
    return " or ".join(names[o] if o in names else _kind(o) for o in options)


def to_toml(config: Config) -> str:
    """`config` as a file for --config, every key with what it means. A key whose value is derived
    is there as a comment, for TOML has no null.
    """
    lines = [
        "# Settings of fdql train: fdql train --config THIS_FILE; flags beat the file.",
        "# A key behind '#' has no value of its own: it is derived from machine and environment,",
        "# or off. See docs/settings.md.",
    ]
    table = ""
    for s in settings():
        head, _, name = s.key.rpartition(".")
        if head != table:
            table = head
            lines += ["", f"[{table}]"]
        value = getattr(getattr(config, head) if head else config, name)
        default = "none" if s.default is None else _value(s.default)
        lines += ["", f"# {s.text}", f"# {s.kind}; unit: {s.unit}; default: {default}"]
        lines += [f"# source of the default: {s.source}"]
        lines.append(f"# {name} =" if value is None else f"{name} = {_value(value)}")
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    """As TOML writes it."""
    return tomli_w.dumps({"x": value}).partition(" = ")[2].strip()


def _cell(text: str) -> str:
    """Text in a table: its bars end no cell, its angle brackets are no HTML."""
    return text.replace("|", r"\|").replace("<", "&lt;").replace(">", "&gt;")


def to_markdown() -> str:
    """docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "Every setting of a run. In a file: `key = value`, those with a dot in their table; "
        "on the command line: `--key value`, with `-` for `_` (`trace_seconds` is `--trace`), and "
        "`--key` or `--no-key` where the value is true or false; in "
        "Python: `fdql.Config(seed=1, sac=fdql.SacConfig(discount=0.98))`. `fdql train "
        "--print-config` writes a file with all of them. A default of none is derived or off, as "
        'the text says. Sources: "ours" is chosen, not measured; "trials" are short runs on small '
        "tasks before the first release. This page is printed by `python -m fdql.settings`.",
    ]
    table = None
    for s in settings():
        head = s.key.rpartition(".")[0]
        if head != table:
            table = head
            lines += ["", f"## {table or 'The run'}", ""]
            lines += [
                "| key | value | default | unit | source | what |",
                "|---|---|---|---|---|---|",
            ]
        default = "none" if s.default is None else f"`{_value(s.default)}`"
        cells = (_cell(x) for x in (s.kind, default, s.unit, s.source, s.text))
        lines.append(f"| `{s.key}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(to_markdown(), end="")
