"""Serial mode: the same objects over private memory, in one process, in lockstep; bit-reproducible
for a seed, also across a stop and a resume.

The oracle of the asynchronous mode, the mode for a debugger, and the mode where there is no memfd.
Nothing here depends on time: chunks are handed over after every pass, policies are published by
count.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from fdql.callbacks import Calls
from fdql.checkpoint import Arrays, CheckpointError, Tensors
from fdql.config import BadValueError
from fdql.ending import RunResult, conclude
from fdql.manifest import read_manifest
from fdql.proc.env_worker import EnvWorker
from fdql.proc.evaluator import Evaluator
from fdql.proc.inference import InferenceServer
from fdql.proc.loader import Loader
from fdql.proc.open_episodes import episodes_of, repeat
from fdql.proc.restore import restore_replay
from fdql.proc.resumed import config_of
from fdql.proc.saver import Captured, Saver
from fdql.proc.trainer import Trainer, make_learner
from fdql.report import Report
from fdql.shm.audit import CorruptError
from fdql.stop_request import StopRequest

METRICS_STEPS = 1000  # environment steps between two rows of metrics


def train_serial(report: Report, calls: Calls, stop: StopRequest) -> RunResult:
    """Train in this process. Same contract as the asynchronous mode."""
    exit_reason, problem = "crash", None
    try:
        # BLAS has one thread: more would change the order of sums. The learner's two do not.
        with threadpool_limits(1):
            exit_reason, problem = Lockstep(report, stop, calls).run()
    except BadValueError as error:
        exit_reason, problem = "bad_value", str(error)
    except CorruptError as error:
        exit_reason, problem = "corrupt", str(error)
    except Exception as error:  # the environment's, or ours: the summary is written either way
        problem = f"{type(error).__name__}: {error}"
        for line in traceback.format_exc().splitlines():
            report.folder.log(line)
            report.board.problem(line)
    return conclude(report, *calls.finish(exit_reason, problem))


class Lockstep:
    """One serial run.

    A pass: one step of every environment, the updates that are due, the evaluation and the metrics
    row that are due. A checkpoint is taken between passes, or where a request to stop cuts one: a
    run that goes on from it begins behind the pass's step.
    """

    def __init__(self, report: Report, stop: StopRequest, calls: Calls) -> None:
        plan, memory = report.plan, report.memory
        self.plan, self.memory, self.report, self.stop = plan, memory, report, stop
        self.calls = calls
        self.loader = Loader(memory)
        self.trainer = Trainer(memory, make_learner(plan))
        self.server = InferenceServer(memory)
        self.worker = EnvWorker(memory, 0, 1)
        self.evaluator = Evaluator(
            memory, lambda kind, **values: report.event({"event": kind, **values})
        )
        self.next_metrics = METRICS_STEPS
        self.saver = Saver(
            plan,
            self.loader.replay,
            self.trainer.record,
            lambda kind, **values: report.event({"event": kind, **values}),
            report.show,
        )

    def run(self) -> tuple[str, str | None]:
        """Returns the exit reason, and the problem that a callback had."""
        reason = "interrupted" if self.stop.requested else ""  # while the learner was made
        steps_first = self.plan.checkpoint is None
        if steps_first:
            self.worker.start()
        else:
            self._restore(Path(str(self.plan.checkpoint)))
        while not reason:
            if steps_first:
                self._step()
            steps_first = True
            reason = self._learn() or self._look()
            if not reason and self.saver.due() and self.trainer.updates:
                captured, engine = self._capture()
                self.saver.save(captured, engine)
        self.report.ledger.close()
        captured, engine = self._capture()
        self.worker.close()
        self.report.event({"event": "train", **self.trainer.metrics()})
        self.trainer.save(self.saver, captured, engine)
        self.evaluator.arena.close()
        return reason, self.calls.end[1] if self.calls.end else None

    def _step(self) -> None:
        worker, server = self.worker, self.server
        if not server.throttled():
            server.serve(server.slots.collect(server.ready, server.ready.size, 0, 0))
            for group in range(worker.groups):
                if worker.slots.wait(group, 0):  # not when it would step beyond the total
                    worker.step_group(group)
            worker.commit()
            self.loader.ingest()
            self.saver.work()

    def _goes_on(self) -> bool:
        return not self.stop.requested

    def _learn(self) -> str:
        """The updates that are due."""
        loader, trainer = self.loader, self.trainer
        batch = loader.batches[0]
        while loader.may_sample():
            if self.stop.requested:
                return "interrupted"
            loader.sample(batch)
            trainer.update(batch)
            loader.give_back(batch)
            if trainer.publish_due(by_time=False):
                trainer.publish()
        return ""

    def _look(self) -> str:
        """The evaluation and the metrics that are due."""
        loader, trainer, evaluator, report = self.loader, self.trainer, self.evaluator, self.report
        done = self.worker.take_finished()
        if done.returns:
            report.event({"event": "episodes", "returns": done.returns, "lengths": done.lengths})
        steps = loader.replay.steps
        finished = loader.governor.complete(steps, trainer.updates, loader.replay.size)
        before = evaluator.next_steps, evaluator.version
        if trainer.updates > evaluator.version and (finished or steps >= evaluator.next_steps):
            trainer.publish()
            if evaluator.evaluate(self._goes_on) is None:
                evaluator.next_steps, evaluator.version = before
                return "interrupted"
        if steps >= self.next_metrics:
            self.next_metrics += METRICS_STEPS
            report.event({"event": "train", **trainer.metrics()})
            report.write()
        if ended := self.calls.look():
            return ended[0]
        if report.verdict:
            return report.verdict
        if finished:
            return "total_timesteps"
        return "interrupted" if self.stop.requested else ""

    def _capture(self) -> tuple[Captured, dict[str, Arrays]]:
        """The learner, and what only serial mode keeps: exploration, the policy that acts, open
        episodes, what the report averages over.
        """
        rows, episodes = episodes_of(self.worker)
        version, data = self.server.weights.acquire()
        policy = np.zeros(self.plan.policy_size, dtype=np.float32)
        if version:
            policy[:] = np.frombuffer(data, dtype=np.float32)[: policy.size]
        del data
        self.server.weights.release()
        arrays = {f"explorer.{k}": v for k, v in self.server.explorer.state().items()} | rows
        captured = self.trainer.capture()
        finished = self.worker.finished
        lockstep = {
            "version": version,
            "turn": self.server.turn.tolist(),
            "episodes": episodes,
            "finished": [finished.returns, finished.lengths],
            "next_evaluation": self.evaluator.next_steps,
            "evaluated": self.evaluator.version,
            "next_metrics": self.next_metrics,
            "report": self.report.state(),
        }
        facts = dict(captured.facts) | {"lockstep": lockstep}
        return Captured(captured.arrays, facts), {"lockstep": arrays | {"policy": policy}}

    def _restore(self, checkpoint: Path) -> None:
        """Go on from a checkpoint; one of the asynchronous mode has no open episodes."""
        exactly = restore_replay(checkpoint, self.loader, self.saver)
        self.trainer.restore(checkpoint)
        manifest = read_manifest(checkpoint)
        saved = manifest.facts.get("lockstep")
        groups = config_of(manifest).engine.groups  # these take turns: others have other rows
        if saved is None or not exactly or groups != self.plan.config.engine.groups:
            self.loader.replay.close_lanes(0, self.plan.lanes)
            self.trainer.publish()
            self.worker.start()
            self.next_metrics += self.loader.replay.steps
            return
        try:
            self._restore_lockstep(checkpoint, saved)
        except (KeyError, TypeError, IndexError, ValueError, OverflowError) as error:
            raise CheckpointError(f"{checkpoint}: its serial part is damaged ({error})") from None

    def _restore_lockstep(self, checkpoint: Path, saved: dict[str, Any]) -> None:
        rows, _ = episodes_of(self.worker)
        own = {f"explorer.{k}": v for k, v in self.server.explorer.state().items()} | rows
        own["policy"] = self.trainer.flat
        with Tensors(checkpoint / "lockstep.safetensors") as file:
            arrays = {name: file.read(name, x.dtype, x.shape) for name, x in own.items()}
        self.trainer.publish_again(arrays["policy"], int(saved["version"]))
        self.server.explorer.load_state(
            {n: arrays[f"explorer.{n}"] for n in self.server.explorer.state()}
        )
        self.server.turn[:] = saved["turn"]
        returns, lengths = saved["finished"]
        self.worker.finished.returns[:], self.worker.finished.lengths[:] = returns, lengths
        self.evaluator.next_steps = int(saved["next_evaluation"])
        self.evaluator.version = int(saved["evaluated"])
        self.next_metrics = int(saved["next_metrics"])
        self.report.load_state(saved["report"])
        cut = repeat(self.worker, self.loader.replay, arrays, saved["episodes"])
        if cut:
            self.report.say(
                f"{len(cut)} of {self.plan.lanes} environments do not repeat their episodes: these "
                "are cut, new ones begin"
            )
