"""`fdql doctor`: what this machine and installation offer, what is wrong, what mends it."""

from __future__ import annotations

from dataclasses import dataclass

SIGNS = {"ok": "ok  ", "advice": "note", "wrong": "BAD "}


@dataclass(frozen=True, kw_only=True)
class DoctorArguments:
    """Look at this machine and this installation; exit code 1 when something is wrong."""

    json: bool = False
    """Print the findings as JSON."""


def run(words: list[str]) -> int:
    """Print the findings. Returns 0, or 1 when something is wrong."""
    import tyro

    a = tyro.cli(DoctorArguments, args=words, prog="fdql doctor")
    from fdql.doctor import examine, healthy, to_dict

    findings = examine()
    if a.json:
        import json

        print(json.dumps(to_dict(findings), indent=2))
        return 0 if healthy(findings) else 1
    for f in findings:
        print(f"{SIGNS[f.state]}  {f.name:13} {f.found}")
        if f.mend:
            print(f"{'':19} -> {f.mend}")
    wrong = sum(f.state == "wrong" for f in findings)
    print("nothing is wrong" if not wrong else f"{wrong} wrong; what mends it stands behind ->")
    return 1 if wrong else 0
