"""Serial mode: the same objects over private memory, in one process, in lockstep; bit-reproducible
for a seed.

The oracle of the asynchronous mode, the mode for a debugger, and the mode where there is no memfd.
Nothing here depends on time: chunks are handed over after every pass, policies are published by
count.
"""

from __future__ import annotations

import traceback

from threadpoolctl import threadpool_limits

from fdql.board import Board
from fdql.config import BadValueError
from fdql.ending import RunResult, conclude
from fdql.proc.env_worker import EnvWorker
from fdql.proc.evaluator import Evaluator
from fdql.proc.inference import InferenceServer
from fdql.proc.loader import Loader
from fdql.proc.memory import RunMemory, RunPlan
from fdql.proc.trainer import Trainer, make_learner
from fdql.profile import Counter
from fdql.report import Report
from fdql.run_folder import RunFolder
from fdql.stop_request import StopRequest

METRICS_STEPS = 1000  # environment steps between two rows of metrics


def train_serial(plan: RunPlan, folder: RunFolder, board: Board, stop: StopRequest) -> RunResult:
    """Train in this process. Same contract as the asynchronous mode."""
    memory = RunMemory.create(plan, shared=False)
    report = Report(plan, memory, folder, board)
    exit_reason, problem = "crash", None
    try:
        # BLAS has one thread: more would change the order of sums. The learner's two do not.
        with threadpool_limits(1):
            exit_reason = _lockstep(plan, memory, report, stop)
    except BadValueError as error:
        exit_reason, problem = "bad_value", str(error)
    except Exception as error:  # the environment's, or ours: the summary is written either way
        problem = f"{type(error).__name__}: {error}"
        for line in traceback.format_exc().splitlines():
            folder.log(line)
            board.problem(line)
    return conclude(report, exit_reason, problem)


def _lockstep(plan: RunPlan, memory: RunMemory, report: Report, stop: StopRequest) -> str:
    """Returns the exit reason."""
    loader = Loader(memory)
    trainer = Trainer(memory, make_learner(plan))
    server = InferenceServer(memory)
    worker = EnvWorker(memory, 0, 1)
    evaluator = Evaluator(memory, lambda kind, **values: report.event({"event": kind, **values}))
    batch = loader.batches[0]
    every = plan.config.eval.every_steps
    next_metrics = METRICS_STEPS
    reason = "interrupted" if stop.requested else ""  # while the learner was made

    def goes_on() -> bool:
        return not stop.requested

    worker.start()
    while not reason:
        if not server.throttled():
            server.serve(server.slots.collect(server.ready, server.ready.size, 0, 0))
            for group in range(worker.groups):
                if worker.slots.wait(group, 0):  # not when it would step beyond the total
                    worker.step_group(group)
            worker.commit()
            loader.ingest()
        while loader.may_sample() and goes_on():
            loader.sample(batch)
            trainer.update(batch)
            loader.give_back(batch)
            if trainer.publish_due(by_time=False):
                trainer.publish()
        done = worker.take_finished()
        if done.returns:
            report.event({"event": "episodes", "returns": done.returns, "lengths": done.lengths})
        steps = loader.replay.steps
        finished = loader.governor.complete(steps, trainer.updates, loader.replay.size)
        if trainer.updates and (finished or steps >= evaluator.next_steps):
            trainer.publish()
            evaluator.evaluate(goes_on)
            evaluator.next_steps = steps - steps % every + every
        if steps >= next_metrics:
            next_metrics += METRICS_STEPS
            report.event({"event": "train", **trainer.metrics()})
            report.write()
        if stop.requested:
            reason = "interrupted"
        elif report.verdict:
            reason = report.verdict
        elif finished:
            reason = "total_timesteps"
    report.ledger.close()
    worker.close()
    report.event({"event": "train", **trainer.metrics()})
    trainer.save()
    evaluator.arena.close()
    assert report.trainer.get(Counter.INSERTED) == loader.replay.steps
    return reason
