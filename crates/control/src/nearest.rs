//! The known name that a misspelt one probably means.

/// Names that are less alike than this are not offered, by Jaro and Winkler, who look at common letters and the
/// beginning, or by the part that is left unchanged; 1 is the same name.
const ALIKE: f64 = 0.75;
const UNCHANGED: f64 = 0.5;

/// Of the known names that are like what was found, the one that takes the fewest changes for its length.
pub fn nearest<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let found = found.to_lowercase();
    let alike = |name: &str| strsim::jaro_winkler(&found, &name.to_lowercase());
    let unchanged = |name: &str| strsim::normalized_damerau_levenshtein(&found, &name.to_lowercase());
    let near = known.into_iter().filter(|name| alike(name) >= ALIKE || unchanged(name) >= UNCHANGED);
    near.max_by(|a, b| unchanged(a).total_cmp(&unchanged(b)))
}

/// `; did you mean trend?`, or nothing: the end of a message.
pub fn did_you_mean<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(found, known).map_or(String::new(), |name| format!("; did you mean {name}?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_meant_is_found_and_what_is_far_off_is_not() {
        let known = ["navicache", "easycache", "trend", "teacache", "wan2.1-t2v-1.3b", "wan2.1-t2v-14b"];
        for (found, meant) in [
            ("navicahe", Some("navicache")),
            ("NaviCache", Some("navicache")),
            ("teecache", Some("teacache")),
            ("wan-1.3b", Some("wan2.1-t2v-1.3b")),
            ("magic", None),
            ("", None),
        ] {
            assert_eq!(nearest(found, known), meant, "{found}");
        }
        assert_eq!(did_you_mean("trnd", known), "; did you mean trend?");
        assert_eq!(did_you_mean("x", known), "");
    }
}
