"""The experts of a layer stacked before they are merged, as transformers holds them: one tensor for all of them.

Statistics are then over all experts of a layer, gate and up together, as mergekit takes them; so is the output.
"""

from __future__ import annotations

import re
from dataclasses import replace

from trine.errors import BadInput
from trine.merge.gather import Gather, one_below_the_other
from trine.merge.jobs import Job, Plan, Tensor

_EXPERT = re.compile(r"^(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight$")
_Group = dict[tuple[int, str], Job]
"""Jobs by (expert, kind)."""


def stack_experts(plan: Plan) -> Plan:
    """The plan with one job per layer for gate and up, [experts, 2 inner, width], and one for down.

    Raises BadInput when there is no expert, a layer lacks some of them, or parameters differ between them.
    """
    groups: dict[str, _Group] = {}
    for job in plan.jobs:
        if found := _EXPERT.match(job.name):
            groups.setdefault(_stacked_name(found), {})[int(found[2]), found[3]] = job
    if not groups:
        raise BadInput("--experts stacked: no tensor named *.experts.N.gate_proj.weight, up_proj or down_proj")
    made = {name: _stacked(name, group) for name, group in groups.items()}
    jobs: dict[str, Job] = {}
    for job in plan.jobs:
        found = _EXPERT.match(job.name)
        name = _stacked_name(found) if found else job.name
        jobs.setdefault(name, made.get(name, job))
    return replace(plan, jobs=list(jobs.values()), stacked=True)


def _stacked_name(found: re.Match[str]) -> str:
    return f"{found[1]}.{'down' if found[3] == 'down' else 'gate_up'}_proj"


def _stacked(name: str, group: _Group) -> Job:
    """The job of all experts' tensors of one kind, or of both gate and up."""
    kinds = ("down",) if name.endswith(".down_proj") else ("gate", "up")
    count = max(expert for expert, _ in group) + 1
    jobs = [group.get((expert, kind)) for expert in range(count) for kind in kinds]
    whole = [job for job in jobs if job is not None]
    if len(whole) < len(jobs):
        raise BadInput(f"--experts stacked: {name}: {len(whole)} tensors for {count} experts, expected {len(jobs)}")
    first = whole[0]
    for job in whole:
        if _kind(job) != _kind(first):
            raise BadInput(f"--experts stacked: {job.name}: merged in another way or shape than {first.name}")
    shape = (count, len(kinds) * first.shape[0], *first.shape[1:])
    models = tuple(_table(name, [job.models[i] for job in whole], shape) for i in range(len(first.models)))
    base = None if first.base is None else _table(name, [job.base for job in whole if job.base], shape)
    return replace(first, name=name, shape=shape, models=models, base=base)


def _kind(job: Job) -> tuple[object, ...]:
    """What must be the same for tensors that are stacked."""
    ways = (job.method, job.each, job.shared, len(job.models), job.base is None)
    return (*ways, job.shape, job.stored, job.work)


def _table(name: str, tensors: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    gather = Gather(tuple(tensors), one_below_the_other([one.shape[0] for one in tensors]), shape)
    return Tensor(tensors[0].model, name, tensors[0].info, gather=gather)
