//! Names of modules as pairs, and their translation.

/// Direction of a translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    ToDiffusers,
    FromDiffusers,
}

/// Pairs of (Diffusers, other) modules; `N` is an index.
pub(crate) type Table = &'static [(&'static str, &'static str)];

/// Translates a name whose module is in a table; what stands behind the module stays.
pub(crate) fn translate(name: &str, table: &[(&str, &str)], way: Way) -> Option<String> {
    table.iter().find_map(|&(diffusers, other)| {
        let (from, to) = if way == Way::ToDiffusers { (other, diffusers) } else { (diffusers, other) };
        let mut rest = name.split('.');
        let mut index = None;
        for part in from.split('.') {
            let found = rest.next()?;
            match part {
                "N" if found.bytes().all(|b| b.is_ascii_digit()) => index = Some(found),
                _ if part == found => {}
                _ => return None,
            }
        }
        let filled = to.split('.').map(|part| if part == "N" { index.unwrap_or(part) } else { part });
        Some(filled.chain(rest).collect::<Vec<_>>().join("."))
    })
}
