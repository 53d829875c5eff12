"""What is known of a run while it goes on: events and counters become metric rows, a line, the
summary.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

from fdql.accounting import Books
from fdql.board import Board
from fdql.bottleneck import Setting, Verdict, bottleneck
from fdql.budget import Account, Ledger, budget, metrics
from fdql.clock import monotonic, process_start
from fdql.machine import allowed_cores
from fdql.proc.governor import Governor
from fdql.proc.memory import RECORD_EVALUATOR, RECORD_INFERENCE, RECORD_TRAINER, RunMemory, RunPlan
from fdql.profile import Counter, Stage, counts, percentiles
from fdql.progress import ProgressMeter
from fdql.run_folder import RunFolder

EPISODES_AVERAGED = 100  # of the training return, as in Stable Baselines


class Report:
    """Fed by the supervisor (or serial mode); the one writer of the run folder's metrics.

    threshold   mean return at which the run counts as solved, None: never
    """

    def __init__(self, plan: RunPlan, memory: RunMemory, folder: RunFolder, board: Board) -> None:
        self.plan, self.folder, self.board = plan, folder, board
        self.memory = memory
        self.trainer = memory.record(RECORD_TRAINER)
        self.inference = memory.record(RECORD_INFERENCE)
        self.workers = [memory.worker_record(w) for w in range(plan.workers)]
        self.ledger = Ledger(
            {f"worker {w}": record for w, record in enumerate(self.workers)}
            | {
                "inference": self.inference,
                "loader": self.trainer,  # a thread of the trainer
                "trainer": self.trainer,
                "evaluator": memory.record(RECORD_EVALUATOR),
            }
        )
        self.governor = Governor(plan.config, plan.base)
        self.meter = ProgressMeter(plan, memory)
        self.setting = Setting(
            cores=allowed_cores(),
            workers=plan.workers,
            envs_per_worker=plan.envs_per_worker,
            samples_per_insert=self.governor.target,
            serial=plan.config.serial,
        )
        stop_at = plan.config.stop_at_return
        self.threshold = (
            plan.env.return_threshold
            if stop_at == "auto"
            else None
            if stop_at == "never"
            else float(stop_at)
        )
        # With a command the clock starts when it does, imports included.
        self.began = process_start() if plan.began is None else plan.began
        self.listeners: list[Callable[[dict[str, Any]], None]] = []  # told of every evaluation
        self.problem: str | None = None  # what was told first
        self.returns: deque[float] = deque(maxlen=EPISODES_AVERAGED)
        self.lengths: deque[int] = deque(maxlen=EPISODES_AVERAGED)
        self.learner: dict[str, float] = {}
        past = folder.past  # of a run that goes on
        self.began -= past.elapsed
        self.restarts, self.evaluation = past.restarts, past.evaluation
        self.unimproved = past.unimproved  # evaluations since the best one
        self.meter.returns += past.returns
        self.first_time_at_stop_return = past.first_at(self.threshold)
        self._last = (self.elapsed(), self.env_steps, self.updates)
        self._speed = (0.0, 0.0)

    def elapsed(self) -> float:
        """Seconds since the command was started."""
        return monotonic() - self.began

    @property
    def env_steps(self) -> int:
        """Environment steps stored in the replay."""
        return self.trainer.get(Counter.INSERTED)

    @property
    def updates(self) -> int:
        """Updates made."""
        return self.trainer.get(Counter.UPDATES)

    def event(self, event: dict[str, Any]) -> None:
        """Take in one event of a child."""
        kind = event["event"]
        if kind == "ready":
            self.ledger.pids[event["role"]] = event["pid"]
        elif kind == "episodes":
            self.returns.extend(event["returns"])
            self.lengths.extend(event["lengths"])
        elif kind == "train":
            self.learner = {k: v for k, v in event.items() if k != "event"}
        elif kind == "evaluation":
            self.evaluation = {k: v for k, v in event.items() if k != "event"}
            self._evaluated()
        elif kind == "warning":
            self.tell(event["message"])
        elif kind == "note":
            self.say(event["message"])
        elif kind == "checkpoint":
            self.folder.log(f"checkpoint {event['name']} written in {event['seconds']:.2f} s")
        elif kind == "checkpoint_failed":
            line = f"a checkpoint could not be written, the one before stays: {event['message']}"
            self.folder.log(line)
            self.board.problem(line)

    def tell(self, problem: str) -> None:
        """Something could not be done and the run goes on: told once, kept for its end."""
        self.folder.log(problem)
        if self.problem is None:
            self.problem = problem
            self.board.problem(problem)

    def say(self, line: str) -> None:
        """A line for the board and the log."""
        self.folder.log(line)
        self.board.note(line)

    def state(self) -> dict[str, Any]:
        """What the next rows depend on beside the counters, for JSON."""
        return {
            "rows": self.folder.rows,
            "returns": list(self.returns),
            "lengths": list(self.lengths),
            "learner": self.learner,
            "evaluation": self.evaluation,
            "unimproved": self.unimproved,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.returns.extend(float(x) for x in state["returns"])
        self.lengths.extend(int(x) for x in state["lengths"])
        self.learner, self.evaluation = dict(state["learner"]), dict(state["evaluation"])
        self.unimproved = int(state["unimproved"])

    def _evaluated(self) -> None:
        e = self.evaluation
        # Not its rank on the leaderboard, which also knows evaluations behind the checkpoint that
        # the run went on from.
        best = e["mean"] > max(self.meter.returns, default=-math.inf)
        self.unimproved = 0 if best else self.unimproved + 1
        self.meter.returns.append(e["mean"])
        solved = self.threshold is not None and e["mean"] >= self.threshold
        if solved and self.first_time_at_stop_return is None:
            self.first_time_at_stop_return = {
                "seconds": round(self.elapsed(), 3),
                "env_steps": e["env_steps"],
                "updates": e["updates"],
                "return": e["mean"],
            }
        self.folder.metrics(self.row(evaluated=True))
        for listener in self.listeners:
            listener(e)
        self.board.note(
            f"{self.elapsed():7.1f} s  evaluation {e['mean']:,.1f} +- {e['std']:,.1f} over "
            f"{e['episodes']} episodes "
            f"({e['env_steps']:,} steps, {e['updates']:,} updates)" + ("  solved" if solved else "")
        )

    @property
    def verdict(self) -> str | None:
        """Why the evaluations end the run: `solved` once one reached the return at which to stop,
        `no_improvement`; None while they do not.
        """
        if self.first_time_at_stop_return is not None:
            return "solved"
        allowed = self.plan.config.stop_without_improvement
        return "no_improvement" if allowed and self.unimproved >= allowed else None

    def row(self, *, evaluated: bool = False) -> dict[str, Any]:
        """One row of metrics, from the counters as they stand. `evaluated`: an evaluation just
        ended.
        """
        now, steps, updates = self.elapsed(), self.env_steps, self.updates
        then, old_steps, old_updates = self._last
        if now - then > 1.0 and self.ledger.last is None:  # the run's end is not its speed
            self._speed = (steps - old_steps) / (now - then), (updates - old_updates) / (now - then)
            self._last = now, steps, updates
        row: dict[str, Any] = {
            "time/time_elapsed": round(now, 3),
            "time/total_timesteps": steps,
            "time/fps": round(self._speed[0], 1),
            "train/n_updates": updates,
            "train/updates_per_second": round(self._speed[1], 1),
            "train/samples_per_insert": self.governor.actual(steps, updates),
            "replay/size": self.trainer.get(Counter.REPLAY),
            "engine/restarts": self.restarts,
        }
        if self.returns:
            row["rollout/ep_rew_mean"] = sum(self.returns) / len(self.returns)
            row["rollout/ep_len_mean"] = sum(self.lengths) / len(self.lengths)
        for key, value in self.learner.items():
            row[f"train/{'ent_coef' if key == 'temperature' else key}"] = value
        if not self.plan.config.serial:  # a lockstep run has none of these
            row["engine/memory_mib"] = round(
                self.meter.memory(self.ledger.pids.values()) / 2**20, 1
            )
            row["engine/duty_cycle"] = self.duty_cycle()
            row["engine/policy_lag_p50"], row["engine/policy_lag_p99"] = self.policy_lag()
        if self.evaluation:
            row["eval/mean_reward"], row["eval/std_reward"] = (
                self.evaluation["mean"],
                self.evaluation["std"],
            )
            row["eval/mean_ep_length"] = self.evaluation["length"]
            if interval := self.evaluation["interval"]:
                row["eval/interval_low"], row["eval/interval_high"] = interval
            row["eval/q_bias"] = self.evaluation["q_bias"]
            if evaluated:
                for key in ("updates", "env_steps", "episodes"):
                    row[f"eval/{key}"] = self.evaluation[key]
        return row

    def duty_cycle(self) -> float:
        """Share of the trainer's time since warm-up that it spent inside updates."""
        total = self.trainer.get(Counter.TRAIN_NS)
        return min(1.0, self.trainer.get(Counter.UPDATE_NS) / total) if total else 0.0

    def policy_lag(self) -> tuple[float, float]:
        """Updates between the policy that chose an action and the newest: median and 99th
        percentile.
        """
        p50, p99 = percentiles(counts(self.trainer, Stage.LAG), (50.0, 99.0))
        return p50, p99

    def limit(self, accounts: dict[str, Account]) -> Verdict:
        """What limits the run by these accounts, role -> account."""
        return bottleneck({role: a.shares() for role, a in accounts.items()}, self.setting)

    def write(self) -> None:
        """Append the current metrics to the run folder and show them."""
        self.ledger.look(training=self.updates > 0)
        row, recent = self.row(), self.ledger.recent()
        verdict = self.limit(recent)
        if not self.plan.config.serial:  # nothing in a lockstep run's files depends on time
            row |= metrics(recent) | {"budget/limited_by": verdict.limit}
        self.folder.metrics(row)
        if self.folder.failed is not None:
            self.tell(self.folder.failed)
        self.board.show(row, recent, verdict.sentence, self.meter.look(row["time/fps"]))

    def show(self) -> None:
        """Show the current metrics if the board is due, write nothing."""
        self.ledger.look(training=self.updates > 0)
        if self.board.due:
            row, recent = self.row(), self.ledger.recent()
            progress = self.meter.look(row["time/fps"])
            self.board.show(row, recent, self.limit(recent).sentence, progress)

    def summary(self, exit_reason: str, problem: str | None, account: Books) -> dict[str, Any]:
        """The run in one table; see README for the keys."""
        config, e = self.plan.config, self.evaluation
        lag = self.policy_lag()
        interval, verdict = self.ledger.interval(), self.limit(self.ledger.whole())
        return {
            "env": config.env,
            "seed": config.seed,
            "mode": "serial" if config.serial else "asynchronous",
            "exit_reason": exit_reason,
            "problem": problem,
            "wall_seconds": round(self.elapsed(), 3),
            "env_steps": self.env_steps,
            "updates": self.updates,
            "samples_per_insert_target": self.governor.target,
            "samples_per_insert_actual": self.governor.actual(self.env_steps, self.updates),
            "eval_return_mean": e.get("mean"),
            "eval_return_std": e.get("std"),
            "eval_return_interval": e.get("interval"),
            "eval_episodes": e.get("episodes"),
            "stop_return": self.threshold,
            "first_time_at_stop_return": self.first_time_at_stop_return,
            "trainer_duty_cycle": self.duty_cycle(),
            "policy_lag_p50": lag[0],
            "policy_lag_p99": lag[1],
            "worker_restarts": self.restarts,
            "episodes": sum(w.get(Counter.EPISODES) for w in self.workers),
            **account.summary(),
            "stale_priorities": self.trainer.get(Counter.STALE),
            "workers": self.plan.workers,
            "envs_per_worker": self.plan.envs_per_worker,
            "learner": config.learner,
            "stages_us": self.ledger.stage_table(),
            "interval_seconds": round(interval.seconds, 3),
            "processes": {p: account.to_dict() for p, account in budget(interval).items()},
            "limited_by": verdict.limit,
            "bottleneck": verdict.sentence,
        }
