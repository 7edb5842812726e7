//! Published and hand-computed numbers of the controllers, and their rules written down once more in the plainest form.

mod common;
#[path = "common/signals.rs"]
mod signals;

use common::{BLOCKS, method, method_for, play, play_on, run};
use navicache_control::cache::navicache::Filter;
use navicache_control::cache::{Approx, CacheConfig, Measure, Quantity, Run, Scope, Subject};
use navicache_control::guidance::Branch;
use signals::{branch_of, signal, wobble};

#[test]
fn kalman_gains_after_the_alignment() {
    // Q = R = 0.05, P = 1 at the end of the alignment; the gain tends to (sqrt(5) - 1) / 2.
    let gains = [0.9545, 0.6615, 0.6243, 0.6189, 0.6182, 0.6181];
    let variances = [0.04773, 0.03308, 0.03121, 0.03095, 0.03091, 0.03090];
    let mut filter = Filter::new(0.05, None);
    filter.align(1.0);
    let update = |filter: &mut Filter| {
        filter.project(0.05);
        filter.correct(2.0)
    };
    for (gain, variance) in gains.into_iter().zip(variances) {
        assert!((update(&mut filter) - gain).abs() < 5e-5);
        assert!((filter.variance - variance).abs() < 5e-6, "{} {variance}", filter.variance);
    }
    for _ in 0..20 {
        update(&mut filter);
    }
    assert!((update(&mut filter) - (5f64.sqrt() - 1.0) / 2.0).abs() < 1e-6);
}

/// Plays a one-element model: inputs `x` and outputs `o`, step by step. Returns which steps were computed.
fn scalar(cache: &str, x: &[f64], o: &[f64]) -> Vec<bool> {
    scalar_of(&method(cache), x, o)
}

fn scalar_of(cache: &CacheConfig, x: &[f64], o: &[f64]) -> Vec<bool> {
    let mut anchor = None::<usize>;
    let mut measure = |i: usize, _: Scope, q: Quantity| {
        let value = match (q.subject, q.measure) {
            (Subject::Input, Measure::ChangeSinceVisit) => (x[i] - x[i.checked_sub(1)?]).abs(),
            (Subject::Input, Measure::ChangeSinceCompute) => (x[i] - x[anchor?]).abs(),
            (Subject::Output, Measure::ChangeSinceCompute) => (o[i] - o[anchor?]).abs(),
            (Subject::Output, Measure::Magnitude) => o[i].abs(),
            other => panic!("{other:?}"),
        };
        // The magnitude is asked for last, when the step is computed: it is the next anchor.
        if q == Subject::Output.by(Measure::Magnitude) {
            anchor = Some(i);
        }
        Some(value)
    };
    let played = play(cache, x.len(), &mut measure);
    (0..x.len()).map(|step| played.is_full(step)).collect()
}

#[test]
fn gate_adds_up_the_predicted_changes() {
    // Ratio 2 and output 4 after the two first steps: each step of 1 predicts 2 * 1 / 4 = 0.5, so with a threshold of
    // 0.9 one step is reused (0.5) and the next computed (1.0).
    for cache in ["navicache,threshold=0.9,align_steps=2", "easycache,threshold=0.9,warmup_steps=2"] {
        let x: Vec<f64> = (0..20).map(f64::from).collect();
        let o: Vec<f64> = [2.0].into_iter().chain([4.0; 19]).collect();
        assert_eq!(scalar(cache, &x, &o)[..5], [true, true, false, true, false], "{cache}");
    }
}

#[test]
fn the_first_steps_and_the_last_one_are_computed() {
    let x: Vec<f64> = (0..4).map(f64::from).collect();
    let o: Vec<f64> = x.iter().map(|x| 1.0 + x).collect();
    assert_eq!(scalar("navicache,threshold=100,align_steps=2", &x, &o), [true, true, false, true]);
}

/// The hook of NaviCache for Wan2.2 (commit 6d29edc): the filter begins at ratio 0 and variance 1, nothing overwrites
/// it, and the gate waits for the first ratio that was measured.
fn wan22_hook(inputs: &[f64], outputs: &[f64], threshold: f64, ret_steps: usize) -> Vec<bool> {
    let (mut error, mut kalman_k, mut kalman_p, mut k) = (0.0, 0.0, 1.0, None::<f64>);
    let (mut prev_input, mut prev_prev_input, mut prev_output) = (None::<f64>, None::<f64>, None::<f64>);
    let mut strip = Vec::new();
    for (i, (&x, &o)) in inputs.iter().zip(outputs).enumerate() {
        let mut compute = true;
        if i < ret_steps || i + 1 == inputs.len() {
            error = 0.0;
        } else if let (Some(before), Some(output), Some(k)) = (prev_input, prev_output, k) {
            error += k * f64::abs(x - before) / (f64::abs(output) + 1e-8);
            compute = error >= threshold;
            if compute {
                error = 0.0;
            }
        }
        prev_input = Some(x);
        strip.push(compute);
        if !compute {
            continue;
        }
        if let (Some(output), Some(anchor)) = (prev_output, prev_prev_input) {
            let observed = f64::abs(o - output) / (f64::abs(x - anchor) + 1e-8);
            kalman_p += 0.05;
            let gain = kalman_p / (kalman_p + 0.05 + 1e-8);
            kalman_k += gain * (observed - kalman_k);
            kalman_p *= 1.0 - gain;
            k = Some(kalman_k);
        }
        (prev_prev_input, prev_output) = (Some(x), Some(o));
    }
    strip
}

#[test]
fn navicache_on_wan22_decides_as_released() {
    let mut unlike_wan21 = 0;
    for seed in 0..200u32 {
        let inputs: Vec<f64> = (0..50).map(|i| 3.0 - 0.05 * i as f64 + 0.02 * wobble(seed, i, 1.3)).collect();
        let outputs: Vec<f64> = (0..50).map(|i| 2.0 + 0.03 * i as f64 + 0.05 * wobble(seed, i, 2.1)).collect();
        let preset = scalar_of(&method_for("navicache", "wan2.2-ti2v-5b"), &inputs, &outputs);
        assert_eq!(preset, wan22_hook(&inputs, &outputs, 0.05, 10), "seed {seed}: the preset is the released one");
        for (threshold, align) in [(0.03, 10), (0.07, 5), (0.2, 0), (0.05, 1), (0.05, 2)] {
            let cache = format!("navicache,threshold={threshold},align_steps={align},alignment=filtered");
            let computed = scalar(&cache, &inputs, &outputs);
            assert_eq!(computed, wan22_hook(&inputs, &outputs, threshold, align), "{cache} seed {seed}");
            unlike_wan21 += usize::from(computed != path_sum(&inputs, &outputs, threshold, align, true));
        }
    }
    assert!(unlike_wan21 > 20, "the trajectories must tell the two apart, {unlike_wan21} did");
}

#[test]
fn magcache_with_a_constant_ratio() {
    // gamma 0.995: errors 0.005, 0.015, 0.030, 0.050; with K = 4 the fifth computes, with a large K the seventh (0.1379
    // > 0.12).
    let ratios = format!("[1{}]", ",0.995".repeat(39));
    for (longest, reused) in [(4, 4), (100, 6)] {
        let cache = format!("magcache,threshold=0.12,ratios={ratios},warmup=0,max_run={longest}");
        let played = play(&method(&cache), 40, &mut |_, _, _| None);
        let expected: Vec<bool> = (0..40).map(|step| step % (reused + 1) == 0).collect();
        assert_eq!((0..40).map(|step| played.is_full(step)).collect::<Vec<_>>(), expected);
    }
}

/// EasyCache and NaviCache as released.
fn path_sum(inputs: &[f64], outputs: &[f64], threshold: f64, align: usize, kalman: bool) -> Vec<bool> {
    let steps = inputs.len();
    let (mut e, mut r, mut p) = (0.0, None::<f64>, 1.0);
    let (mut x_prev, mut x_anchor, mut o_anchor) = (None::<f64>, None::<f64>, None::<f64>);
    let mut strip = Vec::new();
    for i in 0..steps {
        let (x, o) = (inputs[i], outputs[i]);
        let skip = if i < align || i == steps - 1 {
            e = 0.0;
            false
        } else if let (Some(xp), Some(oa), Some(r)) = (x_prev, o_anchor, r) {
            e += r * f64::abs(x - xp) / f64::abs(oa);
            let skip = e < threshold;
            if !skip {
                e = 0.0;
            }
            skip
        } else {
            false
        };
        x_prev = Some(x);
        strip.push(!skip);
        if skip {
            continue;
        }
        if let (Some(xa), Some(oa)) = (x_anchor, o_anchor) {
            let eps = if kalman { 1e-8 } else { 0.0 };
            let z = f64::abs(o - oa) / (f64::abs(x - xa) + eps);
            match r {
                Some(old) if kalman && i >= align => {
                    p += 0.05;
                    let k = p / (p + 0.05 + 1e-8);
                    r = Some(old + k * (z - old));
                    p *= 1.0 - k;
                }
                _ => {
                    r = Some(z);
                    p = 1.0;
                }
            }
        }
        x_anchor = Some(x);
        o_anchor = Some(o);
    }
    strip
}

#[test]
fn easycache_and_navicache_decide_as_released() {
    let mut reused = 0;
    for seed in 0..200u32 {
        let inputs: Vec<f64> = (0..50).map(|i| 3.0 - 0.05 * i as f64 + 0.02 * wobble(seed, i, 1.3)).collect();
        let outputs: Vec<f64> = (0..50).map(|i| 2.0 + 0.03 * i as f64 + 0.05 * wobble(seed, i, 2.1)).collect();
        for (threshold, align) in [(0.03, 10), (0.07, 5), (0.2, 0), (0.05, 1)] {
            for (kalman, name, first) in [(true, "navicache", "align_steps"), (false, "easycache", "warmup_steps")] {
                let expected = path_sum(&inputs, &outputs, threshold, align, kalman);
                let computed = scalar(&format!("{name},threshold={threshold},{first}={align}"), &inputs, &outputs);
                assert_eq!(computed, expected, "{name} seed {seed} threshold {threshold} align {align}");
                reused += computed.iter().filter(|&&c| !c).count();
            }
        }
    }
    assert!(reused > 1000, "the trajectories must exercise reuse, {reused} steps did");
}

/// Compares which branches were computed with a transcription that sees a branch's signal alone.
fn check(cache: &str, steps: usize, scale: f64, transcription: impl Fn(&[f64]) -> Vec<bool>) {
    let mut reused = 0;
    for seed in 0..50 {
        let mut measure =
            |i: usize, scope: Scope, _: Quantity| (i > 0).then(|| signal(seed, i, branch_of(scope), scale));
        let played = play(&method(cache), steps, &mut measure);
        for branch in 0..2 {
            let values: Vec<f64> = (0..steps).map(|i| signal(seed, i, branch, scale)).collect();
            let computed: Vec<bool> = (0..steps).map(|i| played.units(i)[branch] == 3 * BLOCKS).collect();
            assert_eq!(computed, transcription(&values), "{cache} seed {seed} branch {branch}");
            reused += computed.iter().filter(|&&c| !c).count();
        }
    }
    assert!(reused > 100, "{cache}: {reused} reused");
}

/// `E <- E + d_i; skip while E < tau`, with the first and last steps computed.
fn accumulate(changes: impl Fn(usize) -> f64, steps: usize, tau: f64, first: usize, last: usize) -> Vec<bool> {
    let mut e = 0.0;
    (0..steps)
        .map(|i| {
            if i < first || i + last >= steps {
                e = 0.0;
                return true;
            }
            e += changes(i);
            if e < tau {
                return false;
            }
            e = 0.0;
            true
        })
        .collect()
}

#[test]
fn teacache_decides_as_released() {
    let poly = |x: f64| {
        2396.76752 * x.powi(4) - 1311.10545 * x.powi(3) + 201.331979 * x.powi(2) - 8.29855975 * x + 0.137887774
    };
    for tau in [0.05, 0.08, 0.3] {
        let rule = |l: &[f64]| accumulate(|i| poly(l[i]), l.len(), tau, 1, 1);
        check(&format!("teacache,threshold={tau}"), 50, 0.05, rule);
    }
    let ret = |x: f64| {
        -52186.2437 * x.powi(4) + 9230.41404 * x.powi(3) - 528.275948 * x.powi(2) + 13.6987616 * x - 0.0499875664
    };
    let rule = |l: &[f64]| accumulate(|i| ret(l[i]), l.len(), 0.1, 5, 0);
    check("teacache:ret_fast", 50, 0.03, rule);
}

#[test]
fn seacache_decides_as_released() {
    for tau in [0.2, 0.35] {
        let rule = |l: &[f64]| accumulate(|i| l[i], l.len(), tau, 1, 1);
        check(&format!("seacache,threshold={tau}"), 50, 0.1, rule);
    }
}

#[test]
fn dicache_decides_as_released() {
    // The release's defaults for Wan2.1 (commit dd7f0de) are a threshold of 0.08 and a ret_ratio of 0.2.
    for (cache, tau) in [("dicache:mid", 0.08), ("dicache,threshold=0.1", 0.1), ("dicache,threshold=0.3", 0.3)] {
        let rule = |l: &[f64]| accumulate(|i| l[i], l.len(), tau, l.len() / 5, 0);
        check(cache, 50, 0.06, rule);
    }
}

#[test]
fn fbcache_and_dbcache_decide_as_released() {
    // The distance to the last computed step, measured anew at every step: no sum, no warm-up.
    let rule = |l: &[f64]| l.iter().enumerate().map(|(i, d)| i == 0 || *d >= 0.08).collect();
    check("fbcache,threshold=0.08", 50, 0.08, rule);
    // cache-dit's can_cache (commit f86744a), its vetoes in their order: warm-up, all cached steps, cached steps in a
    // row, the sum of all differences that similarity() has seen in this generation, and at last similarity() itself,
    // which adds to that sum.
    let rule = |l: &[f64]| {
        let (mut cached, mut run, mut sum) = (0, 0, 0.0);
        let mut strip = Vec::new();
        for (i, &diff) in l.iter().enumerate() {
            let may_compare = i >= 8 && cached < 12 && run < 3 && sum < 1.1;
            if may_compare {
                sum += diff;
            }
            let reuse = may_compare && diff < 0.08;
            (cached, run) = if reuse { (cached + 1, run + 1) } else { (cached, 0) };
            strip.push(!reuse);
        }
        strip
    };
    check("dbcache,first_blocks=2,threshold=0.08,max_reused=12,max_run=3,max_accumulated=1.1", 50, 0.08, rule);
}

#[test]
fn magcache_decides_as_released() {
    let tables: serde_json::Value =
        serde_json::from_str(include_str!("../src/cache/calibration/magcache.json")).unwrap();
    for (name, steps, thresh, k) in [
        ("wan-t2v-1.3b", 50, 0.12, 4),
        ("wan-t2v-14b", 50, 0.24, 6),
        ("wan-i2v-480p", 40, 0.24, 6),
        ("wan2.2-ti2v-5b", 50, 0.06, 2),
    ] {
        let cache = format!("magcache,ratios={name},threshold={thresh},max_run={k},warmup=0.2");
        let played = play(&method(&cache), steps, &mut |_, _, _| None);
        if name.starts_with("wan2.2") {
            let preset = play(&method_for("magcache", name), steps, &mut |_, _, _| None);
            assert_eq!(preset, played, "the preset is the README's: E006K2R02");
        }
        for (position, branch) in ["cond", "uncond"].into_iter().enumerate() {
            let gamma = |i: usize| tables[name][branch][i].as_f64().unwrap();
            let (mut a, mut e, mut n) = (1.0, 0.0, 0);
            for i in 0..steps {
                let mut skip = false;
                if i >= (0.2 * steps as f64) as usize {
                    a *= gamma(i);
                    n += 1;
                    e += f64::abs(1.0 - a);
                    skip = e < thresh && n <= k;
                    if !skip {
                        (a, e, n) = (1.0, 0.0, 0);
                    }
                }
                assert_eq!(played.units(i)[position] == 0, skip, "{name} {branch} step {i}");
            }
        }
        assert!(played.approximated().next().is_some());
    }
}

/// MagCache4Wan2.2/magcache_generate.py, which counts calls, two a step. The steps of the second transformer are those
/// of the authors' schedules. What the release has added up of the first it goes on with at the second; here each
/// begins anew.
#[test]
fn magcache_decides_as_released_where_two_transformers_share_the_steps() {
    let tables: serde_json::Value =
        serde_json::from_str(include_str!("../src/cache/calibration/magcache.json")).unwrap();
    for (family, split, retention, is_from_picture) in
        [("wan2.2-t2v-a14b", 26, 0.4, false), ("wan2.2-i2v-a14b", 15, 0.1, true)]
    {
        let steps = 40;
        let run = Run { segments: vec![split], ..run(steps) };
        let config = method_for("magcache", family);
        let played = play_on(&run, &config, &mut |_, _, _| None);
        let (calls, split) = (2 * steps, 2 * split);
        let (mut a, mut e, mut n) = ([1.0; 2], [0.0; 2], [0; 2]);
        let mut skipped = 0;
        for call in 0..calls {
            let (step, b) = (call / 2, call % 2);
            let share = |of: usize| of as f64 * retention;
            let computes = match is_from_picture {
                true => call < (split as f64 + share(calls - split)) as usize,
                false => {
                    call < share(split) as usize || call >= split && call as f64 <= share(calls - split) + split as f64
                }
            };
            let mut skip = false;
            if call / 2 == split / 2 {
                (a[b], e[b], n[b]) = (1.0, 0.0, 0);
            }
            if !computes {
                a[b] *= tables[family][["cond", "uncond"][b]][step].as_f64().unwrap();
                n[b] += 1;
                e[b] += f64::abs(1.0 - a[b]);
                skip = e[b] < 0.06 && n[b] <= 2;
                if !skip {
                    (a[b], e[b], n[b]) = (1.0, 0.0, 0);
                }
            }
            skipped += usize::from(skip);
            assert_eq!(played.units(step)[b] == 0, skip, "{family} call {call}");
        }
        assert!(skipped > 10, "{family}: {skipped}");
    }
}

#[test]
fn magcache_tables_begin_with_one() {
    // Every release pads its list by one 1.0 a branch, for the first step, which has no step before it to be compared
    // with.
    let tables: serde_json::Value =
        serde_json::from_str(include_str!("../src/cache/calibration/magcache.json")).unwrap();
    for (name, table) in tables.as_object().unwrap() {
        for branch in ["cond", "uncond"] {
            assert_eq!(table[branch][0], 1.0, "{name} {branch}");
        }
        assert_eq!(table["cond"].as_array().unwrap().len(), table["uncond"].as_array().unwrap().len(), "{name}");
    }
    // Qwen-Image's list has 98 numbers (commit df81cb1): with the two that it is padded by, 50 steps of two branches.
    assert_eq!(tables["qwen-image"]["cond"].as_array().unwrap().len(), 50);
    assert_eq!(tables["qwen-image"]["cond"][1], 1.64062);
}

#[test]
fn pab_broadcasts_as_released() {
    // Open-Sora 1.2's settings on a run whose timesteps include the feed-forward's start: a counter a module, modulo
    // the steps.
    let steps = 30;
    let timestep = |i: usize| run(steps).steps[i].timestep.0;
    let start = timestep(12) + 0.3; // the step nearest to it
    let cache = format!("pab,above=450,below=930,warmup=0,tail=0,mlp_starts=[{start}],mlp_blocks=2,mlp_steps=2");
    let played = play(&method(&cache), steps, &mut |_, _, _| None);
    for i in 0..steps {
        let inside = 450.0 < timestep(i) && timestep(i) < 930.0;
        let mut computed = 3 * BLOCKS;
        for range in [2, 6] {
            computed -= if inside && i % range != 0 { BLOCKS } else { 0 };
        }
        computed -= if (13..=14).contains(&i) { 2 } else { 0 };
        assert_eq!(played.units(i), [computed; 2], "step {i}");
    }
    assert!((0..played.steps.len()).any(|i| played.units(i)[0] < 3 * BLOCKS));
}

#[test]
fn taylorseer_computes_when_the_reference_does() {
    // diffusers: warm-up while current_step < 3; then (current_step - 3 - 1) % 5 == 0, with Python's modulo.
    let played = play(&method("taylorseer"), 50, &mut |_, _, _| None);
    for i in 0..50i32 {
        let computes = i < 3 || (i - 4).rem_euclid(5) == 0;
        assert_eq!(played.units(i as usize) == [3 * BLOCKS; 2], computes, "step {i}");
    }
}

#[test]
fn fastercache_follows_the_reference() {
    // diffusers 0.42.1. The denoiser's hook leaves the unconditional half of the batch out; the hooks of attention skip
    // only where it did (the batch is smaller than the first one) or where guidance is distilled.
    let branches = [vec![Branch::Cond, Branch::Uncond], vec![Branch::Cond]];
    for (branches, is_guidance_distilled) in branches.into_iter().zip([false, true]) {
        let run = Run { branches, ..run(50) };
        let played = play_on(&run, &method("fastercache"), &mut |_, _, _| None);
        let (mut low, mut high) = (1.0, 1.0);
        for i in 0..50 {
            let t = run.steps[i].timestep.0;
            let should_skip_uncond = i > 0 && t < 641.0 && i % 5 != 0 && !is_guidance_distilled;
            let is_within_timestep_range = t < 681.0;
            let should_compute_attention = i > 0 && i % 2 == 0;
            let should_skip_attention =
                is_within_timestep_range && !should_compute_attention && (is_guidance_distilled || should_skip_uncond);

            let cond = 3 * BLOCKS - if should_skip_attention { BLOCKS } else { 0 };
            let uncond = if should_skip_uncond { 0 } else { 3 * BLOCKS };
            assert_eq!(
                played.units(i),
                [cond, uncond][..run.branches.len()],
                "step {i}, distilled: {is_guidance_distilled}"
            );
            let factor = |inside: bool| if inside { 1.1 } else { 1.0 };
            if should_skip_uncond {
                low *= factor(99.0 < t && t < 901.0);
                high *= factor(t < 301.0);
                let found = played.approximated().find(|m| m.step == i && matches!(m.scope, Scope::Branch(_)));
                assert_eq!(found.map(|m| m.approx), Some(Approx::FromCond { low, high }), "step {i}");
            } else {
                (low, high) = (1.0, 1.0);
            }
        }
        assert!((0..50).any(|i| played.units(i)[0] == 2 * BLOCKS));
    }
}

#[test]
fn adacache_looks_lengths_up_as_released() {
    // AdaCache's block (commit 2c6d3ca), whose calls are counted from 1.
    let codebook = [(0.08, 6), (0.16, 5), (0.24, 4), (0.32, 3), (0.40, 2)];
    let num_sampling_steps = 30;
    let skip_cache_steps = [1, num_sampling_steps - 1, num_sampling_steps];
    let mut last_two = 0;
    for seed in 0..50 {
        let change = |i: usize| signal(seed, i, 0, 0.5);
        let mut measure = |i: usize, _: Scope, _: Quantity| (i > 0).then(|| change(i));
        let played = play(&method("adacache:fast"), num_sampling_steps, &mut measure);
        let (mut prev_compute_step, mut rate, mut has_cache) = (0, 1, false);
        for fwd_id in 1..=num_sampling_steps {
            let due = fwd_id == prev_compute_step + rate;
            let active = due || skip_cache_steps.contains(&fwd_id);
            last_two += usize::from(active && !due && fwd_id == num_sampling_steps - 1);
            assert_eq!(played.is_full(fwd_id - 1), active, "seed {seed} call {fwd_id}");
            if active {
                if has_cache {
                    let cache_diff = change(fwd_id - 1) / rate as f64;
                    rate = codebook.iter().find(|(bound, _)| cache_diff < *bound).map_or(1, |(_, rate)| *rate);
                }
                (prev_compute_step, has_cache) = (fwd_id, true);
            }
        }
        assert!(played.approximated().next().is_some());
    }
    assert!(last_two > 10, "the rule of the last steps must matter, it did {last_two} times");
}

#[test]
fn published_thresholds_are_the_presets() {
    for (cache, family, threshold) in [
        ("tafc:mid", "wan-t2v-1.3b", 0.03),
        ("tafc:fast", "wan-t2v-1.3b", 0.15),
        ("tafc:mid", "hunyuanvideo", 0.02),
        ("tafc:fast", "hunyuanvideo", 0.15),
        ("dicache:mid", "wan", 0.08),
        ("dicache:mid", "hunyuanvideo", 0.1),
        ("magcache:slow", "wan2.2-ti2v-5b", 0.04),
    ] {
        let options = method_for(cache, family).method().options();
        assert_eq!(options["threshold"], threshold, "{cache} of {family}: {options}");
    }
}

#[test]
fn the_widened_navicache_is_more_careful() {
    // The gate's standard deviations make it compute more, and with projection at every step more the longer it reuses.
    let reused = |options: &str| {
        let x: Vec<f64> = (0..40).map(|i| 0.01 * f64::from(i)).collect();
        let o: Vec<f64> = x.iter().map(|x| 1.0 + x).collect();
        scalar(&format!("navicache,threshold=0.1,align_steps=2{options}"), &x, &o).iter().filter(|&&c| !c).count()
    };
    let (released, careful) = (reused(""), reused(",uncertainty=2"));
    let wary = reused(",uncertainty=2,projection=every_step");
    assert!(released > careful && careful > wary, "{released} {careful} {wary}");
    assert_eq!(reused(",projection=every_step"), released, "the gate alone looks at the variance");
}
