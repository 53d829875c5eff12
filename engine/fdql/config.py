"""The configuration: frozen, typed, checked. Every field is a flag; unit and source stand beside
the number.

Imports nothing of fdql and nothing heavy, so that `fdql --help` is quick.
"""

from __future__ import annotations

import functools
import math
import os
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

LONGEST_TRACE = 30.0  # seconds
MOST_STEPS = 10**12  # of a run: counters of steps times a ratio must fit 64 bits


class ConfigError(Exception):
    """A setting that cannot work. The message names the setting, its value, the rule and a value
    that works.

    No ValueError: tyro takes one that a constructor raises for its own and frames it.
    """


class BadValueError(ValueError):
    """What training cannot use, stopped at the door: NaN or infinity in an observation, a reward or
    a gradient, an observation of another shape or dtype than its space says.

    The run ends; starting the process again would not help.
    """


def _require(ok: bool, key: str, value: object, rule: str, works: object) -> None:
    if not ok:
        raise ConfigError(f"{key} = {value!r}: {rule}; {works!r} works")


@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _check_types(config: Any, prefix: str = "") -> None:
    """Raises ConfigError for a field of another type than its annotation's. Numbers of NumPy and
    paths become plain ones, integers where a float is asked for become floats.
    """
    kind: Any = type(config)
    for f in fields(config):
        value, hint = getattr(config, f.name), _hints(kind)[f.name]
        options = (hint,) if get_origin(hint) is Literal else get_args(hint) or (hint,)
        for option in options:
            fits, plain = _as(value, option)
            if fits:
                object.__setattr__(config, f.name, plain)
                break
        else:
            table: Any = f.default_factory
            works = f"{table.__name__}()" if isinstance(table, type) else repr(f.default)
            names = " or ".join(_option_name(o) for o in options if o is not type(None))
            raise ConfigError(f"{prefix}{f.name} = {value!r}: must be {names}; {works} works")


def _as(value: Any, option: Any) -> tuple[bool, Any]:
    """Whether `value` is one of `option`, a type or a Literal, and the plain value."""
    if get_origin(option) is Literal:
        return isinstance(value, str) and value in get_args(option), value
    if option is float and isinstance(value, Real) and not isinstance(value, bool):
        return True, float(value)
    if option is int and isinstance(value, Integral) and not isinstance(value, bool):
        return True, int(value)
    if option is str and isinstance(value, os.PathLike):
        return True, os.fspath(value)
    return isinstance(value, option) and (option is bool or not isinstance(value, bool)), value


def _option_name(option: Any) -> str:
    words = get_args(option)
    return " or ".join(repr(w) for w in words) if words else str(option.__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class SacConfig:
    """The learner. One set of numbers; None: by kind of observation or action, as said there."""

    discount: float = 0.99
    """Discount per environment step, gamma."""
    target_rate: float = 0.05
    """Share of the online critics that enters the target critics at every update, tau."""
    batch_size: int = 256
    """Transitions per update."""
    critic_width: int = 128
    """Units of each hidden layer of the critics."""
    actor_width: int = 128
    """Units of each hidden layer of the actor (continuous actions only)."""
    learning_rate: float | None = None
    """AdamW step size of every network; None: 1e-3, for images 5e-4."""
    temperature_learning_rate: float = 1e-3
    """Adam step size of ln(temperature), continuous actions; discrete ones solve for it exactly."""
    weight_decay: float = 1e-4
    """AdamW decay on matrices, per unit of learning rate."""
    gradient_clip: float = 10.0
    """Largest gradient norm of each network."""
    head: Literal["hl_gauss", "tqc"] = "hl_gauss"
    """What a critic says of a return: HL-Gauss, a distribution over fixed bins; or TQC, its
    quantiles, of which the target leaves out the highest (Kuznetsov 2020).
    """
    quantiles: int = 25
    """Quantiles of each TQC critic."""
    quantiles_dropped: int = 2
    """Of both TQC target critics' quantiles, so many per critic are left out, from the top: its
    pessimism.
    """
    quantile_huber: float = 1.0
    """TQC: the loss of an error below this is quadratic, above it linear; scaled reward units."""
    bins: int = 101
    """Bins of the HL-Gauss critics."""
    v_max: float = 5.0
    """The bins' centres span -v_max..v_max, in scaled reward units."""
    sigma_bins: float = 0.75
    """Width of the HL-Gauss target, in bins (Farebrother 2024)."""
    init_temperature: float = 0.01
    """Temperature at the start, in scaled reward units."""
    min_temperature: float = 1e-5
    """Temperature never falls below."""
    target_std: float = 0.15
    """Continuous target entropy: that of a normal action with this deviation, per dimension."""
    target_std_updates: int = 25_000
    """After so many updates target_std falls, as 1 / sqrt(updates)."""
    target_epsilon: float = 0.10
    """Discrete target entropy: that of an epsilon-greedy policy with this epsilon."""
    image_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Products of the image encoder while learning; auto: bfloat16 on a GPU and where the
    CPU multiplies it.
    """
    image_shift: float = 0.025
    """Images of a batch are moved, each on its own and up to this share of their height and width,
    their edges repeated: random shifts (DrQ, Kostrikov 2021). 0 leaves them where they are.
    """
    pessimism: float | None = None
    """Value of two target critics: their minimum at 1, their mean at 0; None: 1 for discrete
    actions, 0 for continuous ones (TQC: see quantiles_dropped).
    """
    entropy_backup: float = 0.0
    """Share of the policy's entropy, times the temperature, that enters the value of the next
    state: 1 is classic SAC, 0 leaves Q an ordinary return (Yu 2022).
    """
    policy_delay: int = 2
    """The actor is updated at every policy_delay-th update of the critics."""

    @property
    def step_size(self) -> float:
        """The learning rate, 1e-3 where none is given."""
        return 1e-3 if self.learning_rate is None else self.learning_rate

    @property
    def net_shape(self) -> dict[str, Any]:
        """What a NetSpec takes from here."""
        return {
            "critic_width": self.critic_width,
            "actor_width": self.actor_width,
            "head": self.head,
            "bins": self.quantiles if self.head == "tqc" else self.bins,
            "v_max": self.v_max,
        }

    def pessimism_for(self, discrete: bool) -> float:
        """The pessimism; where none is given, that of this kind of action."""
        return float(discrete) if self.pessimism is None else self.pessimism

    def __post_init__(self) -> None:
        _check_types(self, "sac.")
        _require(0 <= self.discount < 1, "sac.discount", self.discount, "must be in [0, 1)", 0.99)
        _require(
            0 < self.target_rate <= 1,
            "sac.target_rate",
            self.target_rate,
            "must be in (0, 1]",
            0.05,
        )
        if self.pessimism is not None:
            _require(
                0 <= self.pessimism <= 1, "sac.pessimism", self.pessimism, "must be in [0, 1]", 1.0
            )
            _require(
                self.head != "tqc",
                "sac.pessimism",
                self.pessimism,
                "means nothing with sac.head = 'tqc', where sac.quantiles_dropped takes its place",
                None,
            )
        _require(
            0 <= self.entropy_backup <= 1,
            "sac.entropy_backup",
            self.entropy_backup,
            "must be in [0, 1]",
            0.0,
        )
        _require(
            1 <= self.quantiles <= 1000, "sac.quantiles", self.quantiles, "must be in 1..1000", 25
        )
        _require(
            0 <= self.quantiles_dropped < self.quantiles,
            "sac.quantiles_dropped",
            self.quantiles_dropped,
            f"must be at least 0 and below sac.quantiles ({self.quantiles})",
            min(2, self.quantiles - 1),
        )
        _require(
            1 <= self.batch_size <= 65_536,
            "sac.batch_size",
            self.batch_size,
            "must be in 1..65536",
            256,
        )
        for key in ("critic_width", "actor_width"):
            value = getattr(self, key)
            _require(8 <= value <= 4096, f"sac.{key}", value, "must be in 8..4096", 128)
        if self.learning_rate is not None:
            _require(
                0 < self.learning_rate < math.inf,
                "sac.learning_rate",
                self.learning_rate,
                "must be positive and finite",
                1e-3,
            )
        for key in (
            "temperature_learning_rate",
            "gradient_clip",
            "v_max",
            "sigma_bins",
            "quantile_huber",
            "init_temperature",
            "min_temperature",
            "target_std",
        ):
            value = getattr(self, key)
            default = type(self).__dataclass_fields__[key].default
            _require(
                0 < value < math.inf, f"sac.{key}", value, "must be positive and finite", default
            )
        _require(
            0 <= self.weight_decay < math.inf,
            "sac.weight_decay",
            self.weight_decay,
            "must be at least 0 and finite",
            1e-4,
        )
        _require(3 <= self.bins <= 4096, "sac.bins", self.bins, "must be in 3..4096", 101)
        _require(
            0 < self.target_epsilon < 1,
            "sac.target_epsilon",
            self.target_epsilon,
            "must be in (0, 1)",
            0.1,
        )
        _require(
            0 <= self.image_shift < 0.5,
            "sac.image_shift",
            self.image_shift,
            "must be in [0, 0.5)",
            0.025,
        )
        for key in ("target_std_updates", "policy_delay"):
            value = getattr(self, key)
            default = type(self).__dataclass_fields__[key].default
            _require(value >= 1, f"sac.{key}", value, "must be at least 1", default)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayConfig:
    """The replay: one lane per environment, prioritised by a sum tree."""

    capacity: int | None = None
    """Transitions kept; None: 1,000,000 or what fits 2 GiB."""
    n_step: int = 3
    """Rewards summed before the bootstrap."""
    priority_exponent: float = 0.4
    """Priority = max(|error| / bin width, 1) ** exponent (LAP, Fujimoto 2020); 0 samples uniformly.
    """
    staged_batches: int = 3
    """Batches kept ready for the update."""

    def __post_init__(self) -> None:
        _check_types(self, "replay.")
        if self.capacity is not None:
            _require(
                self.capacity >= 1024,
                "replay.capacity",
                self.capacity,
                "must be at least 1024",
                1_000_000,
            )
        _require(1 <= self.n_step <= 32, "replay.n_step", self.n_step, "must be in 1..32", 3)
        _require(
            0 <= self.priority_exponent <= 1,
            "replay.priority_exponent",
            self.priority_exponent,
            "must be in [0, 1]",
            0.4,
        )
        _require(
            1 <= self.staged_batches <= 16,
            "replay.staged_batches",
            self.staged_batches,
            "must be in 1..16",
            3,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ExploreConfig:
    """How actions are chosen while training."""

    warmup_steps: int = 1000
    """Environment steps of uniform, held actions before the policy acts; their updates are made at
    once.
    """
    explorer_share: float = 0.25
    """Share of the environments that explore harder than the policy."""
    explorer_std_factor: float = 3.0
    """Explorers (continuous): deviation before tanh is this factor times the policy's ..."""
    explorer_min_std: float = 1.0
    """... but at least this."""
    explorer_steps: int = 20_000
    """Explorers (continuous) are like the others after this many environment steps: what they store
    is far from the policy, and locomotion learns from them at half the speed.
    """
    explorer_epsilon: float = 0.1
    """Explorers (discrete): chance per step to start a held uniform action."""
    hold_exponent: float = 2.0
    """Noise lasts k steps with probability ~ k ** -exponent (epsilon-z-greedy, Dabney 2021) ..."""
    hold_longest: int = 64
    """... and k is at most this in the warm-up and of explorers ..."""
    policy_hold_longest: int = 16
    """... and this of all others' continuous actions; 1: their noise is white."""

    def __post_init__(self) -> None:
        _check_types(self, "explore.")
        _require(
            1 <= self.warmup_steps <= MOST_STEPS,
            "explore.warmup_steps",
            self.warmup_steps,
            f"must be in 1..{MOST_STEPS}",
            1000,
        )
        for key in ("explorer_share", "explorer_epsilon"):
            value = getattr(self, key)
            _require(0 <= value <= 1, f"explore.{key}", value, "must be in [0, 1]", 0.1)
        for key in ("explorer_std_factor", "explorer_min_std", "hold_exponent"):
            value = getattr(self, key)
            _require(
                0 <= value < math.inf, f"explore.{key}", value, "must be at least 0 and finite", 1.0
            )
        _require(
            self.explorer_steps >= 0,
            "explore.explorer_steps",
            self.explorer_steps,
            "must be at least 0",
            20_000,
        )
        for key in ("hold_longest", "policy_hold_longest"):
            value = getattr(self, key)
            _require(1 <= value <= 10_000, f"explore.{key}", value, "must be in 1..10000", 16)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """Processes and their exchange; None is derived from the machine."""

    groups: int = 2
    """Groups of environments per worker: one steps while the other waits for its actions."""
    chunk_rows: int = 256
    """Rows of one chunk of the transition ring."""
    commit_rows: int = 64
    """A worker hands its chunk over when it holds this many rows ..."""
    commit_ms: float = 20.0
    """... or when its oldest row is this old, milliseconds."""
    ring_chunks: int = 16
    """Chunks of one worker's ring, a power of two."""
    publish_updates: int = 20
    """Updates between two published policies, at most ..."""
    publish_seconds: float = 0.2
    """... or seconds (asynchronous mode only)."""
    learner_threads: int | None = None
    """Threads of the learner; the compiled one has at most 2, one for each critic, and takes one or
    two as updates are faster at the moment; of images one for each share of a batch, at least 2
    shares; None: from the cores and the environment's step.
    """
    spin_us: float = 0.0
    """Microseconds that workers and inference look for a message before they sleep. On two cores 50
    gained nothing with eight environments and cost a fifth of the steps with one.
    """
    ahead_updates: int = 16
    """Environment workers may be this many updates' worth of steps ahead of the trainer."""
    restarts: int = 5
    """Restarts of an environment worker allowed within `restart_window`."""
    restart_window: float = 600.0
    """Seconds."""
    heartbeat_timeout: float = 120.0
    """Seconds without a sign of life after which a process that was ready is killed."""
    start_timeout: float = 600.0
    """Seconds that making, resetting or stepping an environment may take before the run, and a
    process from one sign of life to the next before it is ready.
    """

    def __post_init__(self) -> None:
        _check_types(self, "engine.")
        _require(1 <= self.groups <= 8, "engine.groups", self.groups, "must be in 1..8", 2)
        _require(
            16 <= self.chunk_rows <= 4096,
            "engine.chunk_rows",
            self.chunk_rows,
            "must be in 16..4096",
            256,
        )
        _require(
            1 <= self.commit_rows <= self.chunk_rows,
            "engine.commit_rows",
            self.commit_rows,
            f"must be in 1..chunk_rows ({self.chunk_rows})",
            min(64, self.chunk_rows),
        )
        _require(
            0 < self.commit_ms <= 10_000,
            "engine.commit_ms",
            self.commit_ms,
            "must be in (0, 10000]",
            20.0,
        )
        power = self.ring_chunks & (self.ring_chunks - 1) == 0
        _require(
            power and 2 <= self.ring_chunks <= 1024,
            "engine.ring_chunks",
            self.ring_chunks,
            "must be a power of two in 2..1024",
            16,
        )
        _require(
            self.publish_updates >= 1,
            "engine.publish_updates",
            self.publish_updates,
            "must be at least 1",
            20,
        )
        _require(
            self.publish_seconds > 0,
            "engine.publish_seconds",
            self.publish_seconds,
            "must be positive",
            0.2,
        )
        _require(
            self.learner_threads is None or 1 <= self.learner_threads <= 256,
            "engine.learner_threads",
            self.learner_threads,
            "must be in 1..256",
            2,
        )
        _require(
            0 <= self.spin_us <= 10_000,
            "engine.spin_us",
            self.spin_us,
            "must be in 0..10000",
            50.0,
        )
        _require(
            1 <= self.ahead_updates <= 1_000_000,
            "engine.ahead_updates",
            self.ahead_updates,
            "must be in 1..1000000",
            16,
        )
        _require(self.restarts >= 0, "engine.restarts", self.restarts, "must be at least 0", 5)
        _require(
            self.restart_window > 0,
            "engine.restart_window",
            self.restart_window,
            "must be positive",
            600.0,
        )
        _require(
            self.heartbeat_timeout >= 1,
            "engine.heartbeat_timeout",
            self.heartbeat_timeout,
            "must be at least 1",
            120.0,
        )
        _require(
            self.start_timeout >= 1,
            "engine.start_timeout",
            self.start_timeout,
            "must be at least 1",
            600.0,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """Evaluation while training: greedy episodes, but for `epsilon`, on a published policy."""

    episodes: int | None = None
    """Episodes per evaluation; None: 20, Atari games 10, Pendulum-v1, whose starts vary, 100."""
    every_steps: int = 1000
    """Environment steps between two evaluations, at least."""
    share: float = 0.2
    """Largest share of the time that evaluation takes, beyond its first 10 seconds; waiting for a
    core does not count (not in serial mode).
    """
    longest_episode: int = 27_000
    """Steps after which an evaluation episode that does not end is cut."""
    epsilon: float | None = None
    """Share of random actions in these episodes; None: 0.01 in Atari games without sticky actions,
    which may repeat one rally until they are cut, else 0.
    """

    def __post_init__(self) -> None:
        _check_types(self, "eval.")
        if self.episodes is not None:
            _require(
                1 <= self.episodes <= 10_000,
                "eval.episodes",
                self.episodes,
                "must be in 1..10000",
                20,
            )
        _require(
            self.every_steps >= 1, "eval.every_steps", self.every_steps, "must be at least 1", 1000
        )
        _require(0 < self.share <= 1, "eval.share", self.share, "must be in (0, 1]", 0.2)
        _require(
            self.longest_episode >= 1,
            "eval.longest_episode",
            self.longest_episode,
            "must be at least 1",
            27_000,
        )
        if self.epsilon is not None:
            _require(
                0 <= self.epsilon <= 1, "eval.epsilon", self.epsilon, "must be in [0, 1]", 0.01
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """One training run."""

    env: str = "CartPole-v1"
    """Gymnasium id, or module:factory of your own environment."""
    seed: int = 0
    """Seed of everything: networks, environments, exploration, replay."""
    total_timesteps: int = 1_000_000
    """Environment steps at most, rounded up to a whole group of environments."""
    stop_at_return: float | Literal["auto", "never"] = "auto"
    """Stop at the first evaluation with this mean; auto: the environment's registered threshold."""
    stop_without_improvement: int | None = None
    """Stop after this many evaluations in a row that are no better than the best before; None:
    never.
    """
    serial: bool = False
    """One process, in lockstep, bit-reproducible for a seed."""
    check: bool = False
    """Checksum every chunk, request, reply and policy and verify it where it is read; one that does
    not fit ends the run.
    """
    workers: int | None = None
    """Environment processes; None: as many as keep up with the learner, by the environment's step
    time.
    """
    envs_per_worker: int | None = None
    """Environments in each worker; None: 8 (images: 16) shared by the workers, one per group at
    least.
    """
    ratio: float | Literal["free"] | None = None
    """Samples drawn per environment step inserted, held from both sides; free: unthrottled; None:
    32, for images 8, 64 where an observation and an action have 16 numbers or more together.
    """
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the learner runs; auto: the CPU."""
    learner: Literal["auto", "compiled", "torch"] = "auto"
    """compiled: Numba kernels, CPU; torch: the readable reference; auto: compiled on a CPU."""
    run_dir: str | None = None
    """Folder of this run, must not exist; None: runs/<env>/<time>-<seed>."""
    checkpoint_every: float = 120.0
    """Seconds between two checkpoints, written beside training; 0: only one, at the end."""
    checkpoint_keep: int = 2
    """Newest checkpoints kept, beside the first with the best evaluation; 0: none is written and
    the run cannot be resumed.
    """
    trace_seconds: float | None = None
    """Write a timeline of this many seconds of all processes to trace.json in the run folder."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard too, into tensorboard/ in the run folder."""
    wandb: bool = False
    """Send metrics and settings to Weights & Biases too; WANDB_MODE=offline keeps them here."""
    sac: SacConfig = field(default_factory=SacConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    explore: ExploreConfig = field(default_factory=ExploreConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    @property
    def samples_per_insert(self) -> float | Literal["free"]:
        """The ratio, 32 where none is given."""
        return 32.0 if self.ratio is None else self.ratio

    def __post_init__(self) -> None:
        _check_types(self)
        _require(bool(self.env.strip()), "env", self.env, "must name an environment", "CartPole-v1")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "must be in 0..2**63-1", 0)
        _require(
            1 <= self.total_timesteps <= MOST_STEPS,
            "total_timesteps",
            self.total_timesteps,
            f"must be in 1..{MOST_STEPS}",
            1_000_000,
        )
        if self.ratio is not None and self.ratio != "free":
            _require(
                0 < self.ratio <= 4096,
                "ratio",
                self.ratio,
                "must be in (0, 4096] or 'free'",
                32.0,
            )
        if isinstance(self.stop_at_return, float):
            _require(
                math.isfinite(self.stop_at_return),
                "stop_at_return",
                self.stop_at_return,
                "must be finite, 'auto' or 'never'",
                "auto",
            )
        if self.stop_without_improvement is not None:
            _require(
                self.stop_without_improvement >= 1,
                "stop_without_improvement",
                self.stop_without_improvement,
                "must be at least 1",
                20,
            )
        if self.workers is not None:
            _require(self.workers >= 1, "workers", self.workers, "must be at least 1", 1)
        if self.envs_per_worker is not None:
            groups = self.engine.groups
            rule = f"must be a positive multiple of engine.groups ({groups}), at most 256"
            ok = self.envs_per_worker >= 1 and self.envs_per_worker % groups == 0
            _require(
                ok and self.envs_per_worker <= 256,
                "envs_per_worker",
                self.envs_per_worker,
                rule,
                4 * groups,
            )
            rows = 2 * self.envs_per_worker // groups
            _require(
                rows <= self.engine.chunk_rows,
                "engine.chunk_rows",
                self.engine.chunk_rows,
                f"must hold one step of a group twice ({rows} rows)",
                rows,
            )
        _require(
            0 <= self.checkpoint_every < math.inf,
            "checkpoint_every",
            self.checkpoint_every,
            "must be at least 0 and finite",
            120.0,
        )
        _require(
            0 <= self.checkpoint_keep <= 1000,
            "checkpoint_keep",
            self.checkpoint_keep,
            "must be in 0..1000",
            2,
        )
        if self.run_dir is not None:
            named = bool(self.run_dir.strip()) and "\0" not in self.run_dir
            _require(named, "run_dir", self.run_dir, "must name a folder", "runs/mine")
        if self.trace_seconds is not None:
            _require(
                0 < self.trace_seconds <= LONGEST_TRACE,
                "trace",
                self.trace_seconds,
                f"must be above 0 and at most {LONGEST_TRACE:g} seconds, for every thread keeps "
                "0.5 MiB of events a second",
                5.0,
            )
            if self.serial:
                raise ConfigError(
                    f"trace = {self.trace_seconds:g}: a timeline shows processes side by side, and "
                    "serial = True has one; leaving --serial out works"
                )
        if self.device == "cuda" and self.learner == "compiled":
            raise ConfigError(
                "learner = 'compiled' runs on the CPU only, device = 'cuda' needs learner = 'torch'"
            )
