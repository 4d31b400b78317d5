"""The table of probes, in the order in which they run: what is cheap and explains the rest comes first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sightline.doctor.finding import Finding
from sightline.doctor.patient import REPLY, Patient
from sightline.errors import UserError

if TYPE_CHECKING:
    from sightline.policy.load import Policy

__all__ = ["PROBES", "Probe", "chosen", "unsound"]


@dataclass(frozen=True, slots=True)
class Probe:
    """One line of the report.

    Attributes:
        title: what it looks at.
        run: the probe, as a function of the patient.
        needs: parts that must open before it can run.
    """

    title: str
    run: Callable[[Patient], Finding]
    needs: tuple[str, ...] = ()


def _versions(patient: Patient) -> Finding:
    from sightline.doctor.machine import installed, required, version_probe

    del patient
    return version_probe(installed(), required())


def _device(patient: Patient) -> Finding:
    from sightline.doctor.machine import device_probe

    model = patient.recipe.model
    return device_probe(model.device, model.dtype, model.threads)


def _weights(patient: Patient) -> Finding:
    policy = patient.open("policy")
    broken = unsound(policy)
    if broken:
        return Finding(
            level="fail", what=f"{len(broken)} tensors hold what is no number: {', '.join(broken[:3])}",
            meaning="every reply and every update would be lost", details=broken, values={"broken": len(broken)},
            command="download or copy the checkpoint again",
        )  # fmt: skip
    count = sum(p.numel() for p in policy.model.parameters())
    name, size = patient.recipe.model.name, f"{count / 1e6:,.1f} M parameters"
    return Finding(
        level="pass",
        what=f"{name}: {policy.family}, {size} in {patient.loading:.1f} s",
        meaning="every tensor has its place; none is missing, left over or of another shape, and all are numbers",
        values={"family": policy.family, "parameters": count},
    )


def unsound(policy: Policy) -> tuple[str, ...]:
    """Names of the parameters with infinite values or NaN."""
    return tuple(
        name for name, p in policy.model.named_parameters() if p.is_floating_point() and not bool(p.isfinite().all())
    )


def _data(patient: Patient) -> Finding:
    from sightline.doctor.rows import data_probe

    found = data_probe(patient.files, budget=None)
    if found.level != "fail":
        patient.open("records")
    return found


def _prompts(patient: Patient) -> Finding:
    from sightline.doctor.wording import prompt_probe

    return prompt_probe(patient.policy, patient.prompts)


def _tokens(patient: Patient) -> Finding:
    from sightline.doctor.tokens import token_probe

    recipe = patient.recipe
    return token_probe(
        patient.policy, patient.prompts, reply=recipe.sampling.max_new_tokens, budget=recipe.train.token_budget
    )


def _bans(patient: Patient) -> Finding:
    from sightline.doctor.bans import ban_probe

    return ban_probe(patient.policy, patient.sampler, patient.requests(2))


def _coordinates(patient: Patient) -> Finding:
    from sightline.doctor.coordinates import coordinate_probe

    return coordinate_probe(patient.policy)


def _blindness(patient: Patient) -> Finding:
    from sightline.doctor.blindness import blindness_probe

    return blindness_probe(patient.policy, patient.records)


def _parity(patient: Patient) -> Finding:
    from sightline.doctor.parity import parity_probe

    name = "local" if patient.recipe.sampling.server is None else "server"
    return parity_probe(patient.policy, patient.sampler, patient.requests(4), patient.settings, name=name)


def _habits(patient: Patient) -> Finding:
    from sightline.doctor.habits import habit_probe

    tokens = min(patient.recipe.sampling.max_new_tokens, 8 * REPLY)
    return habit_probe(patient.policy, patient.sampler, patient.records, tokens=tokens)


def _judge(patient: Patient) -> Finding:
    from sightline.doctor.judging import judge_probe

    weight = getattr(getattr(patient.method.config, "weights", None), "consistency", 0)
    return judge_probe(patient.recipe.judge_config, consistency=isinstance(weight, int | float) and weight > 0)


def _memory(patient: Patient) -> Finding:
    from sightline.doctor.room import HERE, memory_probe, usable
    from sightline.policy.memory import CARDS

    card, name = usable(patient.card, patient.recipe.model.device)
    if patient.card is None and name == HERE and patient.recipe.model.device.startswith("cuda"):
        card, name = max(CARDS.values()), "no card is here; the largest of the table"
    return memory_probe(patient.needs(), card, name=name, estimate=patient.needs_with)


def _disk(patient: Patient) -> Finding:
    from sightline.doctor.machine import disk_probe

    policy, recipe = patient.policy, patient.recipe
    saved = [p for p in policy.model.parameters() if p.requires_grad or not policy.lora]  # else the adapter alone
    weights = sum(p.numel() * p.element_size() for p in saved)
    trained = sum(p.numel() for p in saved if p.requires_grad)
    masters = 4 if recipe.model.dtype != "float32" and recipe.model.masters == "fp32" else 0
    moments = 2 if recipe.optim.states == "8bit" else 8
    return disk_probe(
        patient.folder, weights=weights, states=float(masters + moments) * trained, keep=recipe.train.keep
    )


PROBES: dict[str, Probe] = {
    "versions": Probe("libraries", _versions),
    "device": Probe("where it computes", _device),
    "data": Probe("rows of the data", _data),
    "weights": Probe("weights load", _weights, ("policy",)),
    "prompts": Probe("prompts and tags", _prompts, ("policy", "records")),
    "tokens": Probe("image tokens", _tokens, ("policy", "records")),
    "coordinates": Probe("boxes come back", _coordinates, ("policy",)),
    "blindness": Probe("images get through", _blindness, ("policy", "records")),
    "bans": Probe("banned ids", _bans, ("policy", "records", "sampler")),
    "parity": Probe("sampler = learner", _parity, ("policy", "records", "sampler")),
    "habits": Probe("boxes it writes", _habits, ("policy", "records", "sampler")),
    "judge": Probe("who decides", _judge),
    "memory": Probe("room on the card", _memory),
    "disk": Probe("room for checkpoints", _disk, ("policy",)),
}
"""Every probe by its name."""


def chosen(only: tuple[str, ...] = (), skip: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The names to run, in the order of the table.

    Raises:
        UserError: a name that no probe has.

    Example:
        >>> chosen(only=("parity", "device")), "judge" in chosen(skip=("judge",))
        (('device', 'parity'), False)
    """
    for option, names in (("--only", only), ("--skip", skip)):
        for name in names:
            if name not in PROBES:
                raise UserError(f"no probe is called {name!r}", where=option, hint=f"one of {', '.join(PROBES)}")
    return tuple(name for name in PROBES if (not only or name in only) and name not in skip)
