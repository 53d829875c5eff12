"""Files from strangers: mutations of a policy file, a leaderboard, a config, a checkpoint, and of
a run's other files when it goes on or is put on a page.

    python tests/stress/fuzz_files.py --mutations 1000 [--seed 0]

Every mutant is loaded. It must load (it is harmless then: other numbers) or raise CheckpointError
or ConfigError with a message that names the file. Anything else is wrong: another exception, more
than 256 MiB of memory, a process started, code compiled or run, a file opened beside the mutant.
Half of the mutants are bytes changed at random; half keep the syntax and change one value to
something nasty, checksums made right again, as somebody would who means it. A crash of the
interpreter is an exit code that is not 0. Prints a line per kind; exit code 1 when anything was
wrong.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import random
import resource
import struct
import sys
import tempfile
import typing
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

import tomli_w  # noqa: E402
from fdql.checkpoint import CheckpointError, save_tensors  # noqa: E402
from fdql.checkpoint_folder import CheckpointFolder, set_aside  # noqa: E402
from fdql.config import BadValueError, Config, ConfigError  # noqa: E402
from fdql.config_file import load_toml, to_dict  # noqa: E402
from fdql.going_on import resume, run_config  # noqa: E402
from fdql.history import load_history  # noqa: E402
from fdql.leaderboard import Entry, Leaderboard  # noqa: E402
from fdql.manifest import read_manifest  # noqa: E402
from fdql.page import page  # noqa: E402
from fdql.play import load  # noqa: E402
from fdql.proc.loader import Loader  # noqa: E402
from fdql.proc.memory import RunMemory  # noqa: E402
from fdql.proc.restore import restore_replay  # noqa: E402
from fdql.proc.resumed import begin_counters, keeps_row  # noqa: E402
from fdql.proc.saver import Saver  # noqa: E402
from fdql.proc.trainer import Trainer, make_learner  # noqa: E402
from fdql.run_folder import RunFolder  # noqa: E402
from fdql.supervisor import train  # noqa: E402
from plans import small_config, small_plan  # noqa: E402

RECORDS = ("summary.json", "metrics.jsonl")
ROOM = 256 << 20  # bytes that loading a file of some kilobytes may take
NASTY: list[Any] = [
    None, True, 0, -1, 3, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400, 1e308, -1e308, 0.5,
    float("nan"), float("inf"), "", "x", "__import__('os').abort()", "os:abort",
    "../../../etc/passwd", "/etc/passwd", "a" * 10_000, "\ud800", [], [0], [[]], {},
    {"x": 1}, [2**40] * 3,
]  # fmt: skip
FORBIDDEN = (
    "exec", "compile", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork",
    "pickle.find_class", "ctypes.dlopen", "socket.connect", "import", "marshal.loads",
)  # fmt: skip

seen: list[str] = []  # what the audit hook noticed during one load
watched: Path | None = None  # the folder that may be read while a mutant is loaded


def notice(event: str, args: tuple[Any, ...]) -> None:
    """The audit hook: forbidden events, and files opened elsewhere."""
    if watched is None:
        return
    if event in FORBIDDEN and sys._getframe(1).f_code.co_filename != typing.__file__:
        # typing evaluates the annotations of our own classes.
        seen.append(f"{event} {str(args)[:100]}")
    elif event == "open" and isinstance(args[0], str) and not args[0].startswith(str(watched)):
        seen.append(f"open {args[0]}")


def scrambled(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed at random."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(len(out) or 1)
        match rng.randrange(6):
            case 0 if out:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                del out[at:]
            case 2:
                out[at:at] = rng.randbytes(rng.randrange(1, 20))
            case 3:
                out[at : at + rng.randrange(1, 40)] = b""
            case 4:
                out[at : at + 1] = rng.choice((b"9" * 5000, b"[" * 100_000, b'{"a":' * 50_000))
            case _:
                out[at : at + 8] = struct.pack("<Q", rng.choice((2**63, 2**40, 2**32, 0)))
    return bytes(out)


def twisted(value: Any, rng: random.Random) -> Any:
    """A copy of nested plain data with one value, key or part of it changed."""
    value = copy.deepcopy(value)
    spots: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, below in items:
            spots.append((node, key))
            if isinstance(below, dict | list):
                walk(below)

    walk(value)
    node, key = rng.choice(spots)
    kind = rng.randrange(5)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[rng.choice(("x", "__class__", "env", "critic_width", "../x"))] = node.pop(key)
    elif kind == 2 and isinstance(node[key], int | float):
        node[key] = rng.choice((-1, 0, 2, 10, 2**20, 2**40)) * node[key] + rng.choice((0, 1))
    else:
        node[key] = copy.deepcopy(rng.choice(NASTY))
    return value


def tensors_header(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header of a safetensors file, its facts decoded, and its body."""
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"]["facts"] = json.loads(header["__metadata__"]["facts"])
    return header, data[8 + size :]


def with_header(header: dict[str, Any], body: bytes) -> bytes:
    """The file again."""
    meta = header.get("__metadata__")
    if isinstance(meta, dict) and "facts" in meta and not isinstance(meta["facts"], str):
        meta["facts"] = json.dumps(meta["facts"])
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + body


class Target:
    """Something to load: its files, how one is twisted, what loads it."""

    def __init__(self, name: str, files: list[Path], load_it: Callable[[], Any]) -> None:
        self.name, self.files, self.load_it = name, files, load_it
        self.originals = {f: f.read_bytes() for f in files}

    def mutate(self, rng: random.Random) -> Path:
        """Write one mutant. Returns the file that was changed."""
        file = rng.choice(self.files)
        data = self.originals[file]
        if rng.random() < 0.5:
            file.write_bytes(scrambled(data, rng))
            return file
        if file.suffix in (".json", ".jsonl"):
            whole = file.suffix == ".json"
            texts = [data] if whole else data.splitlines()
            tables = twisted([json.loads(text) for text in texts], rng)
            text = "\n".join(map(json.dumps, tables))
            file.write_bytes(text.encode("utf-8", "surrogatepass"))
        elif file.suffix == ".toml":
            import tomllib

            try:
                text = tomli_w.dumps(twisted(tomllib.loads(data.decode()), rng))
            except (TypeError, ValueError):  # no such value in TOML
                text = data.decode() + "\nx = " + "[" * rng.choice((3, 50_000))
            file.write_bytes(text.encode("utf-8", "surrogatepass"))
        else:
            header, body = tensors_header(data)
            if rng.random() < 0.3 and body:
                body = scrambled(body, rng)
            else:
                header = twisted(header, rng)
            file.write_bytes(with_header(header, body))
        self.forge(file)
        return file

    def forge(self, file: Path) -> None:
        """Make the manifest's sizes and checksums fit again, where there is one."""
        for manifest in self.files:
            if manifest.name != "manifest.json":
                continue
            data = file.read_bytes()
            values = json.loads(data if file == manifest else self.originals[manifest])
            entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for part in ("files", "shared"):
                if file.name in values.get(part, ()):
                    values[part][file.name] = entry
            content = {k: values[k] for k in ("format", "facts", "files", "shared") if k in values}
            values["sha256"] = hashlib.sha256(json.dumps(content).encode()).hexdigest()
            manifest.write_bytes(json.dumps(values).encode("utf-8", "surrogatepass"))

    def restore(self) -> None:
        """The files as they were."""
        for file, data in self.originals.items():
            file.parent.mkdir(exist_ok=True)  # it may have been set aside
            file.write_bytes(data)


def act(path: Path) -> None:
    """Load a policy and ask it once: strange numbers must not crash the kernels either."""
    policy = load(path)
    env = policy.env
    shape = (*((env.stack,) if env.stack > 1 else ()), *env.obs_shape)
    policy.predict(np.zeros(shape, dtype=np.uint8 if env.image else np.float32))


def checkpoint(folder: Path) -> Target:
    """A run's checkpoint, with rows of its replay; loading is what a resumed trainer does, and some
    batches.
    """
    plan = small_plan("CartPole-v1", folder / "resumed", serial=True)
    config = small_config("CartPole-v1", serial=True, total_timesteps=400, run_dir=plan.run_dir)
    train(config, quiet=True)
    where = Path(plan.run_dir) / "checkpoints"

    def restore() -> None:
        said: list[str] = []
        found = CheckpointFolder(where).newest(said.append)
        if found is None:
            raise CheckpointError("; ".join(said))
        for each in found.broken:
            set_aside(each)
        memory = RunMemory.create(plan, shared=False)
        begin_counters(memory, found[1])
        loader, trainer = Loader(memory), Trainer(memory, make_learner(plan))
        saver = Saver(plan, loader.replay, trainer.record, lambda *_, **__: None)
        restore_replay(found[0], loader, saver)
        loader.replay.close_lanes(0, plan.lanes)
        trainer.restore(found[0])
        for _ in range(4):
            loader.sample(loader.batches[0])

    return Target("checkpoint", [f for f in sorted(where.rglob("*")) if f.is_file()], restore)


def goes_on(folder: Path) -> Target:
    """A run's files beside its checkpoints as `fdql resume` reads them, up to the first step."""
    run = folder / "going"
    config = small_config("CartPole-v1", serial=True, total_timesteps=400, run_dir=str(run))
    train(config, quiet=True)

    def begin(config: Config, *, checkpoint: Path, **_: object) -> None:
        kept = partial(keeps_row, read_manifest(checkpoint))
        opened = RunFolder(replace(config, tensorboard=False, wandb=False), kept)
        opened.begin()
        opened.close()

    def load_it() -> None:
        wanted = replace(run_config(run), total_timesteps=1000, stop_at_return="never")
        with patch("fdql.going_on.train", begin):
            resume(run, wanted)

    return Target("run that goes on", [run / n for n in ("config.toml", *RECORDS)], load_it)


def on_a_page(folder: Path) -> Target:
    """A run's files as `fdql report` takes them. Few values: a figure takes its time."""
    run = folder / "shown"
    run.mkdir()
    (run / "config.toml").write_text(tomli_w.dumps(to_dict(Config())))
    share = {"per_second": 1.0, "share": 0.5, "p50": 1.0, "p99": 2.0, "p99.9": 3.0}
    account = {"busy": 0.6, "waiting": 0.3, "stages_us": {"update": share}, "waits_us": {}}
    summary = {"exit_reason": "solved", "problem": "none", "eval_return_interval": [1.0, 2.0],
               "first_time_at_stop_return": {"seconds": 1.0}, "env_steps": 3,
               "processes": {"trainer": account}, "bottleneck": "none"}  # fmt: skip
    (run / "summary.json").write_text(json.dumps(summary))
    rows = [
        {"time/time_elapsed": i, "time/total_timesteps": 9 * i, "engine/duty_cycle": 0.5}
        for i in range(4)
    ]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def show() -> None:
        page([load_history(run)]).encode("utf-8", "replace")

    return Target("run on a page", [f for f in sorted(run.iterdir())], show)


def targets(folder: Path) -> list[Target]:
    """One of each kind, small."""
    made = []
    rng = np.random.default_rng(0)
    for name in ("CartPole-v1", "Pendulum-v1", "own_envs:Picture"):
        plan = small_plan(name, folder)
        policy = folder / f"policy-{plan.env.action_dim}{plan.env.discrete:d}.safetensors"
        flat = rng.standard_normal(plan.policy_size).astype(np.float32)
        facts = plan.policy_facts() | {"updates": 7, "env_steps": 70, "eval_return_mean": 1.5}
        save_tensors(policy, {"policy": flat}, facts)
        made.append(Target(f"policy of {name}", [policy], lambda p=policy: act(p)))
        if name == "CartPole-v1":
            run = folder / "run"
            run.mkdir()
            board = Leaderboard(run / "best", print)
            for updates, mean in ((7, 1.0), (9, 2.0)):
                entry = Entry(updates, 10 * updates, mean, 0.1, 0.9, 1.1, 4)
                board.offer(entry, {"policy": flat}, facts)
            index = run / "best" / "leaderboard.json"
            made.append(Target("leaderboard", [index], lambda r=run: act(r)))
    config = folder / "config.toml"
    config.write_text(tomli_w.dumps(to_dict(Config(workers=2, ratio=8.0, run_dir="x"))))
    made.append(Target("config", [config], lambda: load_toml(config)))
    made += [checkpoint(folder), on_a_page(folder), goes_on(folder)]
    return made


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    global watched
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds = targets(folder)
        outcomes: dict[str, Counter[str]] = {t.name: Counter() for t in kinds}
        for target in kinds:  # once whole, so that everything is imported and compiled
            target.load_it()
        sys.addaudithook(notice)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        for i in range(options.mutations):
            target = kinds[i % len(kinds)]
            file = target.mutate(rng)
            seen.clear()
            watched = folder
            try:
                target.load_it()
                outcome = "harmless"
            except (CheckpointError, ConfigError, BadValueError) as error:
                named = file.name in str(error) or str(folder) in str(error)
                outcome = "refused" if named else f"refused without a name: {error}"
            except BaseException as error:
                outcome = f"{type(error).__name__}: {str(error)[:200]}"
            watched = None
            if seen:
                outcome = f"did {seen[0]}"
            outcomes[target.name][outcome.split(":")[0]] += 1
            if outcome not in ("harmless", "refused"):
                wrong += 1
                print(f"mutation {i}, {target.name}: {outcome}", file=sys.stderr)
            target.restore()
    for kind, counts in outcomes.items():
        print(f"{kind}: " + ", ".join(f"{n} {what}" for what, n in sorted(counts.items())))
    print(f"{options.mutations} mutations, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
