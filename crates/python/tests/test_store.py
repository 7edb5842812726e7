"""Leases of a service's jobs; none of it needs Ray."""

import importlib.util
import pathlib
import sys
import time

import navicache

SOURCE = pathlib.Path(navicache.__file__).parent / "ray" / "store.py"
_spec = importlib.util.spec_from_file_location("navicache_store", SOURCE)
store = importlib.util.module_from_spec(_spec)
sys.modules["navicache_store"] = store
_spec.loader.exec_module(store)


def test_a_job_is_one_workers_until_its_lease_runs_out(tmp_path):
    jobs, others = store.Store(tmp_path / "jobs.sqlite"), store.Store(tmp_path / "jobs.sqlite")
    first, second = jobs.add("a", {"steps": 2}), jobs.add("b", {})
    taken = others.take(0.3)
    assert (taken.id, taken.options, taken.status, taken.tries) == (first.id, {"steps": 2}, "in_progress", 1)
    assert jobs.take(60).id == second.id and jobs.take(60) is None
    assert others.renew(taken, 0.3, 0.5) and jobs.get(first.id).progress == 0.5
    time.sleep(0.35)
    again = jobs.take(60)
    assert (again.id, again.tries) == (first.id, 2)
    # The worker that was slow hears that the job is not its own any more.
    assert not others.renew(taken, 60, 0.9) and not others.complete(taken)
    assert jobs.complete(again) and jobs.get(first.id).status == "completed"
    assert [record.id for record in jobs.list(10)] == [second.id, first.id]


def test_a_job_that_kills_its_workers_fails(tmp_path):
    jobs = store.Store(tmp_path / "jobs.sqlite")
    job = jobs.add("a", {})
    for _ in range(4):
        assert jobs.take(-1).id == job.id
    assert jobs.take(60) is None
    assert jobs.get(job.id).status == "failed" and jobs.get(job.id).error == "its worker was lost 4 times"


def test_a_deleted_job_is_nobodys(tmp_path):
    jobs = store.Store(tmp_path / "jobs.sqlite")
    jobs.add("a", {})
    taken = jobs.take(60)
    assert jobs.delete(taken.id) and not jobs.delete(taken.id)
    assert not jobs.renew(taken, 60, 0.1) and not jobs.fail(taken, "late") and jobs.get(taken.id) is None
