"""Traces, replay and tuning on the built-in model."""

import pytest

import navicache

PROMPT = "a blue star spinning on a cream background"


@pytest.fixture(scope="module")
def trace():
    return navicache.Trace.record("demo", PROMPT, steps=24)


def test_a_trace_goes_to_a_file_and_back(trace, tmp_path):
    trace.save(tmp_path / "star.jsonl")
    again = navicache.Trace.load(tmp_path / "star.jsonl")
    assert again.header == trace.header and again.steps == trace.steps and len(trace.steps) == 24
    assert trace.header["prompt"] == PROMPT
    (tmp_path / "bad.jsonl").write_text("{}\n")
    with pytest.raises(navicache.ModelError, match="bad.jsonl: line 1"):
        navicache.Trace.load(tmp_path / "bad.jsonl")


def test_a_replay_of_a_schedule_is_what_the_engine_does(trace):
    """What a method that measures does depends on its own video; a schedule's does not."""
    caches = ["none", "taylorseer,interval=3", "schedule,strip=" + "SS|..|" * 12]
    for cache, replayed in zip(caches, navicache.replay(trace, *caches), strict=True):
        made = navicache.generate("demo", PROMPT, steps=24, cache=cache)
        assert replayed["strip"] == made.report.strip, cache
        assert ("." in replayed["strip"]) == (cache != "none")


def test_a_range_is_several_settings(trace):
    replayed = navicache.replay([trace, trace], "navicache,threshold=0.02..0.5")
    assert len(replayed) == 8 and replayed[0]["speedup"] <= replayed[-1]["speedup"]
    assert len(navicache.replay(trace)) > 10


def test_what_was_tuned_can_be_run_and_kept(trace, tmp_path):
    preset = navicache.tune(trace, "navicache", "easycache", speedup=1.5)
    assert preset["predicted"]["speedup"] >= 1.5 and preset["family"] == "demo"
    preset.save(tmp_path / "preset.json")
    reports = [
        navicache.generate("demo", PROMPT, steps=24, cache=cache).report
        for cache in (preset, f"@{tmp_path / 'preset.json'}")
    ]
    assert reports[0].strip == reports[1].strip and ".." in reports[0].strip
    assert reports[0]["cache"] == reports[1]["cache"] == preset["cache"]
    with pytest.raises(ValueError, match="none of .* settings meets it"):
        navicache.tune(trace, "navicache", speedup=1000)
    with pytest.raises(ValueError, match="either speedup= or error="):
        navicache.tune(trace)


def test_predictors_are_scored_on_changes(tmp_path):
    rows = ["step,input_rel_l1,output_rel_l1,experiment_id", "0,0,0,a"]
    rows += [f"{step},{0.1 + 0.001 * step},{0.2 + 0.002 * step},a" for step in range(1, 30)]
    (tmp_path / "changes.csv").write_text("\n".join(rows))
    scores = navicache.predict(tmp_path / "changes.csv")
    # The output's change is twice the input's: whoever multiplies by a ratio is right.
    assert {score["method"] for score in scores} >= {"navicache", "easycache"}
    assert all(score["mean_absolute_error"] < 0.02 for score in scores)
    with pytest.raises(ValueError, match="predicts no output change"):
        navicache.predict([tmp_path / "changes.csv"], "pab")
