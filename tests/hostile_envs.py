"""Environments that harm the process they live in: at once, after a while, or in an evaluation.

`when` counts the steps of one environment; the process that steps it is harmed at that step.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from own_envs import Counting, Faulty, Obs


class AbortsAtReset(Counting):
    """Native code that gives up, with a word of why."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Obs, dict[str, Any]]:
        print("engine.c:42: assertion failed: it never works", file=sys.stderr, flush=True)
        os.abort()


class LeavesAtReset(AbortsAtReset):
    """Ends its process as if all were well."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Obs, dict[str, Any]]:
        os._exit(0)


class ExitsWhenMade(Counting):
    """exit() in a constructor."""

    def __init__(self) -> None:
        sys.exit("no licence")


class HangsWhenMade(Counting):
    """Waits for a server that never comes."""

    def __init__(self) -> None:
        time.sleep(3600)


class StopsItself(Counting):
    """SIGSTOP at its first step."""

    def step(self, action: Any) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        os.kill(os.getpid(), signal.SIGSTOP)
        return super().step(action)


class ClosesEverythingAtOnce(Counting):
    """Closes what it never opened, at its first step."""

    def step(self, action: Any) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        os.closerange(0, 256)
        return super().step(action)


class NeverCloses(Counting):
    """Hangs in close: no reason not to train."""

    def close(self) -> None:
        time.sleep(3600)


class NanAtReset(Counting):
    """Its first observation is not finite."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Obs, dict[str, Any]]:
        return np.array([np.nan, 0], dtype=np.float32), {}


class TooShort(Counting):
    """One number where the space says two: NumPy would write it twice and say nothing."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Obs, dict[str, Any]]:
        return np.zeros(1, dtype=np.float32), {}


class Words(Counting):
    """Observations that are no numbers."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return ["here", "there"], {}


class OldReset(Counting):
    """gym's reset of 2021."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset()[0]


class OlderReset(Counting):
    """... which did not know seeds either."""

    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


class OldStep(Counting):
    """gym's step of 2021."""

    def step(self, action: Any) -> Any:
        obs, reward, terminated, _, info = super().step(action)
        return obs, reward, terminated, info


class NoReward(Counting):
    """Forgot to return one."""

    def step(self, action: Any) -> Any:
        obs, _, *rest = super().step(action)
        return obs, None, *rest


class NanReward(NoReward):
    """Divides zero by zero."""

    def step(self, action: Any) -> Any:
        obs, _, *rest = super().step(action)
        return obs, float("nan"), *rest


class ArrayReward(NoReward):
    """Computes it from the action, an array of one."""

    def step(self, action: Any) -> Any:
        obs, reward, *rest = Counting.step(self, action)
        return obs, np.array([reward]), *rest


class AsksForASampledAction(Counting):
    """Calls what only NumPy's integers have, which its action space samples."""

    def step(self, action: Any) -> Any:
        return super().step(action.item())


class Aborts(Faulty):
    """Native code gives up."""

    def fault(self, result: Any) -> Any:
        print("engine.c:99: assertion failed: it worked for a while", file=sys.stderr, flush=True)
        os.abort()


class Leaves(Faulty):
    """Ends its process without Python noticing."""

    def fault(self, result: Any) -> Any:
        os._exit(11)


class Freezes(Faulty):
    """Stops its process: alive, silent, deaf to all but SIGKILL."""

    def fault(self, result: Any) -> Any:
        os.kill(os.getpid(), signal.SIGSTOP)
        return result


class ClosesEverything(Faulty):
    """Closes what it never opened."""

    def fault(self, result: Any) -> Any:
        os.closerange(0, 256)
        return result


class WritesAMarker(Faulty):
    """Closes everything and opens a file of its own: it may get a number that was ours."""

    def fault(self, result: Any) -> Any:
        os.closerange(0, 256)
        for i in range(40):
            os.open(Path(os.environ["HOSTILE_PLACE"]) / str(i), os.O_CREAT | os.O_WRONLY)
        return result


class Splits(Faulty):
    """Forks, and both go on as if they were the worker."""

    def fault(self, result: Any) -> Any:
        os.fork()
        return result


class Breeds(Faulty):
    """Starts processes that would live on, and dies."""

    def fault(self, result: Any) -> Any:
        pid = os.fork()
        if pid == 0:
            while True:
                time.sleep(60)
        with Path(os.environ["HOSTILE_PLACE"]).open("a") as file:
            file.write(f"{pid}\n")
        os._exit(9)


class Babbles(Faulty):
    """Prints 40 megabytes without a pause, half of it in one line."""

    def fault(self, result: Any) -> Any:
        for _ in range(20):
            print("y" * 1_000_000, end="")
        for _ in range(200_000):
            print("z" * 99)
        return result


class TakesSignals(Faulty):
    """Catches every signal that can be caught."""

    def fault(self, result: Any) -> Any:
        for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, lambda *_: None)
        return result


class EatsMemory(Faulty):
    """Takes memory until there is none; its own limit keeps the machine alive."""

    def fault(self, result: Any) -> Any:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), resource.RLIM_INFINITY))
        eaten = []
        while True:
            eaten.append(np.ones(1 << 20))


class ShapeChanges(Faulty):
    """Returns one number where there were two."""

    def fault(self, result: Any) -> Any:
        return np.ones(1, dtype=np.float32), *result[1:]


class InEvaluation(Counting):
    """Harmless to a worker; what is wrong is wrong where `proc.evaluator` runs."""

    def step(self, action: Any) -> Any:
        result = super().step(action)
        playing = getattr(sys.modules["__main__"].__spec__, "name", "") == "fdql.proc.evaluator"
        return self.fault(result) if playing else result

    def fault(self, result: Any) -> Any:
        return np.array([np.inf, 0], dtype=np.float32), *result[1:]


class InfRewardInEvaluation(InEvaluation):
    """An infinite reward."""

    def fault(self, result: Any) -> Any:
        return result[0], float("-inf"), *result[2:]


class AbortsInEvaluation(InEvaluation):
    """Native code gives up."""

    def fault(self, result: Any) -> Any:
        os.abort()


class SlowToMake(Counting):
    """Takes longer to construct than a process may be silent."""

    def __init__(self) -> None:
        super().__init__()
        time.sleep(0.9)
