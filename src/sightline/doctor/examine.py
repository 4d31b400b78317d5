"""Runs probes one after the other and collects what they find."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sightline.doctor.finding import Finding, Level, failed, worst
from sightline.doctor.patient import Patient
from sightline.doctor.probes import PROBES
from sightline.errors import UserError

__all__ = ["Examination", "examine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What was found about one recipe.

    Attributes:
        findings: by probe, in the order in which they ran.
        not_run: probes that could not run, and why.
        seconds: by probe.
    """

    findings: dict[str, Finding] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def level(self) -> Level:
        """The most serious level of all findings."""
        return worst([finding.level for finding in self.findings.values()])

    def count(self, level: Level) -> int:
        return sum(finding.level == level for finding in self.findings.values())

    def row(self) -> dict[str, Any]:
        """As plain data, pictures left out."""
        findings = [
            {
                "probe": name, "level": found.level, "what": found.what, "meaning": found.meaning,
                "command": found.command, "details": list(found.details), "values": found.values,
                "seconds": round(self.seconds.get(name, 0.0), 3),
            }
            for name, found in self.findings.items()
        ]  # fmt: skip
        return {"level": self.level, "findings": findings, "not_run": self.not_run}


def examine(
    patient: Patient, names: Sequence[str], *, on_start: Callable[[str], None] | None = None,
    on_done: Callable[[str, Finding | None], None] | None = None,
) -> Examination:  # fmt: skip
    """Runs the named probes.

    A probe whose part an earlier one found broken is not run; what breaks for the first time is that probe's failure.

    Args:
        patient: the recipe and its parts.
        names: keys of `PROBES`, in order.
        on_start: told the name of the probe that begins.
        on_done: told its name and what it found, None if it was not run.
    """
    result = Examination()
    for name in names:
        probe = PROBES[name]
        if on_start is not None:
            on_start(name)
        started = time.perf_counter()
        missing = patient.broken(probe.needs)
        found = None
        if missing:
            result.not_run[name] = f"needs the {missing}, which could not be opened"
        else:
            found = _found(patient, name)
            if found.command:
                found = _addressed(found, patient)
            result.findings[name] = found
        result.seconds[name] = time.perf_counter() - started
        if on_done is not None:
            on_done(name, found)
    return result


def _found(patient: Patient, name: str) -> Finding:
    """What one probe finds; that it breaks is a finding too, the run would break in the same way."""
    probe = PROBES[name]
    try:
        for part in probe.needs:
            patient.open(part)
        return probe.run(patient)
    except UserError as error:
        return failed(error, "the run could not start")
    except Exception as error:  # noqa: BLE001 - told as what was found; the other probes still run
        what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        is_full = "out of memory" in what.lower()
        return Finding(
            level="fail", what=what, meaning="the run would stop in the same way",
            command="smaller model.max_pixels or sampling.batch, or model.lora" if is_full
            else f"sightline doctor RECIPE --only {name} --json",
        )  # fmt: skip


def _addressed(found: Finding, patient: Patient) -> Finding:
    """The finding with the recipe as it was typed in its command; a change of a key is tried by asking again."""
    from dataclasses import replace

    command = f"sightline doctor RECIPE {found.command}" if found.command.startswith("--") else found.command
    of_doctor = f"sightline doctor {patient.name} {patient.options}".rstrip()
    command = command.replace("sightline doctor RECIPE", of_doctor).replace("RECIPE", patient.name)
    return replace(found, command=command)
