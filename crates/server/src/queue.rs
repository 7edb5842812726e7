//! Which job comes next: a pure function of what waits, who used the device, and the time.
//!
//! Highest priority first; then the key with the fewest device-seconds of the last hour over its weight; of keys that
//! are within a twentieth, one whose model is loaded, and else the one that used least; within a key the oldest. Nobody
//! waits more than ten minutes for a loaded model.

use std::collections::HashMap;

/// Keys whose use differs by less are equal.
const NEAR: f64 = 0.05;
/// A job that waited longer is not passed over because of another's model.
const PATIENCE_MS: i64 = 10 * 60 * 1000;
/// What is used is looked at over so much time.
pub const WINDOW_MS: i64 = 60 * 60 * 1000;

/// A job that waits.
#[derive(Debug, Clone, PartialEq)]
pub struct Waiting {
    pub id: String,
    pub key: String,
    pub priority: i64,
    pub created_ms: i64,
    pub model: String,
    /// How long it is expected to take.
    pub seconds: f64,
}

/// What the order depends on beside the jobs.
#[derive(Debug, Default)]
pub struct Past {
    /// Device-seconds of the last hour, by key.
    pub used: HashMap<String, f64>,
    /// Weights of keys that have another than 1.
    pub weights: HashMap<String, f64>,
    /// The model that is loaded.
    pub loaded: Option<String>,
    pub now_ms: i64,
}

/// Indices of the jobs in the order in which they are expected to run.
pub fn order(waiting: &[Waiting], past: &Past) -> Vec<usize> {
    let mut used = past.used.clone();
    let mut loaded = past.loaded.clone();
    // Of each priority and key a line, the oldest last.
    let mut lines: HashMap<(i64, &str), Vec<usize>> = HashMap::new();
    for (index, job) in waiting.iter().enumerate() {
        lines.entry((job.priority, &job.key)).or_default().push(index);
    }
    for line in lines.values_mut() {
        line.sort_by(|a, b| (waiting[*b].created_ms, &waiting[*b].id).cmp(&(waiting[*a].created_ms, &waiting[*a].id)));
    }
    let mut order = Vec::with_capacity(waiting.len());
    while let Some(priority) = lines.keys().map(|(priority, _)| *priority).max() {
        let share = |key: &str| {
            let weight = past.weights.get(key).copied().unwrap_or(1.0);
            used.get(key).copied().unwrap_or(0.0) / weight
        };
        let heads = || lines.iter().filter(|((of, _), _)| *of == priority).filter_map(|(_, line)| line.last().copied());
        let least = heads().map(|index| share(&waiting[index].key)).fold(f64::INFINITY, f64::min);
        let is_near = |index: &usize| share(&waiting[*index].key) <= least * (1.0 + NEAR);
        let rank = |index: &usize| {
            let job = &waiting[*index];
            let waits_too_long = past.now_ms - job.created_ms > PATIENCE_MS;
            let is_loaded = loaded.as_ref() == Some(&job.model);
            (!waits_too_long, !waits_too_long && !is_loaded)
        };
        let age = |index: &usize| (waiting[*index].created_ms, &waiting[*index].id);
        let is_before = |a: &usize, b: &usize| {
            let by_share = || share(&waiting[*a].key).total_cmp(&share(&waiting[*b].key));
            rank(a).cmp(&rank(b)).then_with(by_share).then_with(|| age(a).cmp(&age(b)))
        };
        let Some(next) = heads().filter(is_near).min_by(is_before) else { break };
        let job = &waiting[next];
        *used.entry(job.key.clone()).or_default() += job.seconds;
        loaded = Some(job.model.clone());
        if let Some(line) = lines.get_mut(&(priority, job.key.as_str())) {
            line.pop();
            if line.is_empty() {
                lines.remove(&(priority, job.key.as_str()));
            }
        }
        order.push(next);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `KEY` or `KEY:MODEL` or `KEY:MODEL:PRIORITY`, a second after the other, of ten seconds each.
    fn jobs(text: &str) -> Vec<Waiting> {
        let job = |(index, word): (usize, &str)| {
            let mut parts = word.split(':');
            Waiting {
                id: format!("{index:03}"),
                key: parts.next().unwrap().to_string(),
                model: parts.next().unwrap_or("m").to_string(),
                priority: parts.next().map_or(0, |priority| priority.parse().unwrap()),
                created_ms: 1000 * index as i64,
                seconds: 10.0,
            }
        };
        text.split_whitespace().enumerate().map(job).collect()
    }

    #[test]
    fn who_comes_next() {
        let used = |key: &str, seconds| Past { used: HashMap::from([(key.to_string(), seconds)]), ..Past::default() };
        let loaded = |model: &str, now_ms| Past { loaded: Some(model.to_string()), now_ms, ..Past::default() };
        let weighted = Past { weights: HashMap::from([("b".to_string(), 2.0)]), ..Past::default() };
        for (what, waiting, past, expected) in [
            ("a key alone: the oldest first", "a a a", Past::default(), vec![0, 1, 2]),
            ("many jobs of one key do not keep another waiting", "a a a a b", Past::default(), vec![0, 4, 1, 2, 3]),
            ("who used the device waits", "a b b", used("a", 15.0), vec![1, 2, 0]),
            ("a weight of two is twice the share", "b a b b a", weighted, vec![0, 1, 2, 3, 4]),
            ("priority goes before all", "a b:m:1 a b:m:2", Past::default(), vec![3, 1, 0, 2]),
            ("a loaded model goes first", "a:x b:y", loaded("y", 0), vec![1, 0]),
            ("but not for ever", "a:x b:y", loaded("y", PATIENCE_MS + 500), vec![0, 1]),
            (
                "nor before a key that used less",
                "a:x b:y",
                Past { loaded: Some("y".to_string()), ..used("b", 5.0) },
                vec![0, 1],
            ),
            ("nothing", "", Past::default(), vec![]),
        ] {
            assert_eq!(order(&jobs(waiting), &past), expected, "{what}");
        }
    }

    #[test]
    fn twenty_keys_take_turns() {
        let names: Vec<String> = (0..1000).map(|i| format!("k{}", i / 50)).collect();
        let waiting = jobs(&names.join(" "));
        let order = order(&waiting, &Past::default());
        for round in order.chunks(20) {
            let mut keys: Vec<&str> = round.iter().map(|index| waiting[*index].key.as_str()).collect();
            keys.sort();
            keys.dedup();
            assert_eq!(keys.len(), 20);
        }
    }
}
