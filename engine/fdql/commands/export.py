"""`fdql export`: a trained policy as an ONNX file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """Write a trained policy as an ONNX model, normalisation and action scaling included."""

    run: str
    """Run folder, or a policy.safetensors file."""
    out: Path = Path("policy.onnx")
    """File to write."""
    which: str = "best"
    """best, last, or a rank on the leaderboard."""
    force: bool = False
    """Overwrite that file."""


def run(words: list[str]) -> int:
    """Write the file and say what goes in and out."""
    import tyro

    positional = (tyro.conf.PositionalRequiredArgs,)
    a = tyro.cli(ExportArguments, args=words, prog="fdql export", config=positional)
    from fdql.export import OPSET, export
    from fdql.play import load

    policy = load(a.run, a.which)
    export(policy, a.out, force=a.force)
    print(f"{a.out}: the greedy policy for {policy.env.env}, ONNX opset {OPSET}")
    return 0
