"""The commands about jobs: requests that the service answers later."""

import argparse
import json
from dataclasses import asdict
from typing import get_args

from noneq.cli import terminal
from noneq.cli.commands import connected, deliver
from noneq.jobs import JobStatus, State

STATES = get_args(State)


def do_list(given: argparse.Namespace) -> int:
    """List your jobs, the latest first."""
    with connected(given) as client:
        found = client.jobs(given.state, given.limit)
    if given.json:
        print(json.dumps([asdict(one) for one in found]))
        return 0
    for one in found:
        print(_line(one))
    return 0


def do_get(given: argparse.Namespace) -> int:
    """Get a job's answer, or print where the job stands if there is none yet."""
    with connected(given) as client:
        job = client.job(given.id)
        status = job.status()
        if not status.over:
            print(json.dumps(asdict(status)) if given.json else _line(status))
            return 0
        return deliver(job.result(), given)


def do_wait(given: argparse.Namespace) -> int:
    """Wait for a job's answer, and get it."""
    with connected(given) as client:
        job = client.job(given.id)
        with terminal.progress(f"job {given.id}") as listener:
            job.wait(listener or False, given.timeout)
        return deliver(job.result(), given)


def do_cancel(given: argparse.Namespace) -> int:
    """Cancel jobs, or remove them with their answers."""
    with connected(given) as client:
        for id_ in given.id:
            client.job(id_).cancel()
    print(json.dumps(given.id) if given.json else f"cancelled {', '.join(given.id)}")
    return 0


def _line(one: JobStatus) -> str:
    done = f"{one.step}/{one.total}"
    left = "" if one.over or one.seconds_left is None else f"  {one.seconds_left:.0f} s left"
    why = "" if one.problem is None else f"  {one.problem.get('title', '')}"
    created = one.created[:19].replace("T", " ")
    what = f"{one.path:<10}  {one.model:<20}  {done:>15}"
    return f"{one.id}  {one.state:<7}  {what}  {created}{left}{why}"
