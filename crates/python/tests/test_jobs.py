"""Jobs of a batch, their files and the journal; none of it needs Ray."""

import importlib.util
import json
import pathlib
import sys

import pytest

import navicache

# `navicache.ray` asks for Ray; its jobs do not.
SOURCE = pathlib.Path(navicache.__file__).parent / "ray" / "jobs.py"
_spec = importlib.util.spec_from_file_location("navicache_jobs", SOURCE)
jobs = importlib.util.module_from_spec(_spec)
sys.modules["navicache_jobs"] = jobs
_spec.loader.exec_module(jobs)

PROMPT = "a red circle bouncing on a navy background"


def test_jobs_come_from_objects_and_lines(tmp_path):
    rows = [{"prompt": "a", "seed": 1}, {"prompt": "b", "name": "second", "cache": "none"}]
    made = jobs.read_jobs(rows, {"cache": "navicache"})
    assert [(job.name, job.options) for job in made] == [
        ("00000", {"cache": "navicache", "seed": 1}),
        ("second", {"cache": "none"}),
    ]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert jobs.read_jobs(tmp_path / "jobs.jsonl", {"cache": "navicache"}) == made


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([{"seed": 1}], "job 0: expected a `prompt`"),
        ([{"prompt": "a", "name": "x"}, {"prompt": "b", "name": "x"}], "job 1: name 'x' is that of an earlier one"),
        ([{"prompt": "a", "name": "../x"}], "is no name of a file"),
        ([{"prompt": "a", "name": ""}], "is no name of a file"),
        ([{"prompt": "a", "stepz": 1}], "job 0, '00000': unexpected options stepz"),
    ],
)
def test_what_is_no_job_is_refused(rows, text):
    with pytest.raises(ValueError, match=text):
        jobs.read_jobs(rows, {})


def test_a_job_is_made_once_and_again_when_it_changes(tmp_path):
    maker = jobs.Maker(tmp_path, "demo")
    [job] = jobs.read_jobs([{"prompt": PROMPT, "steps": 2}], {"cache": "none"})
    assert jobs.finished(tmp_path, job, "demo") is None
    report = maker.make(job)
    assert jobs.finished(tmp_path, job, "demo") == report
    before = (tmp_path / "00000.mp4").stat().st_mtime_ns
    maker.make(job)
    assert (tmp_path / "00000.mp4").stat().st_mtime_ns == before, "it was made twice"
    [other] = jobs.read_jobs([{"prompt": PROMPT, "steps": 3}], {"cache": "none"})
    assert jobs.finished(tmp_path, other, "demo") is None
    for load in ({"loras": ["a.safetensors:0.5"]}, {"dtype": "bf16"}, {"transformer": tmp_path / "b.safetensors"}):
        assert jobs.finished(tmp_path, job, "demo", load) is None, load
    assert jobs.finished(tmp_path, job, "demo", {"device": "cpu", "memory": "2GiB", "dtype": None}) == report
    (tmp_path / "00000.mp4").unlink()
    assert jobs.finished(tmp_path, job, "demo") is None
    (tmp_path / "00000.json").write_text("{")
    assert jobs.finished(tmp_path, job, "demo") is None


def test_the_journal_is_one_batchs_and_outlives_a_torn_line(tmp_path):
    [job] = jobs.read_jobs([{"prompt": "a"}], {})
    with jobs.Journal(tmp_path) as journal:
        journal.write("begin", job)
        with pytest.raises(ValueError, match="another batch writes there"):
            jobs.Journal(tmp_path)
    with open(tmp_path / "journal.jsonl", "a") as file:
        file.write('{"event": "be')
    with jobs.Journal(tmp_path) as journal:
        journal.write("end", job, strip="S|")
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert [line[:12] for line in lines] == ['{"event": "b', '{"event": "b', '{"event": "e']
    assert json.loads(lines[2])["strip"] == "S|"
