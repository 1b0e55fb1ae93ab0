//! How near two words are: what somebody may have meant. Counterpart: the "did you mean" of many tools.

/// How far `one` is from `other`, if it is near enough to be a slip: edits of a letter, or of two that changed places;
/// the same letters in another case; one as a part of the other.
pub(super) fn distance(one: &str, other: &str) -> Option<usize> {
    if one == other {
        return Some(0);
    }
    if one.eq_ignore_ascii_case(other) {
        return Some(1);
    }
    let shorter = one.len().min(other.len());
    let far = (shorter / 3).clamp(1, 3);
    if one.len().abs_diff(other.len()) <= far {
        let edits = edits(one.as_bytes(), other.as_bytes());
        if edits <= far {
            return Some(edits);
        }
    }
    let part = shorter >= 3 && (one.contains(other) || other.contains(one));
    part.then_some(4)
}

/// Edits between two words: insertion, deletion, replacement, neighbours that changed places (optimal string alignment).
fn edits(one: &[u8], other: &[u8]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in other.iter().enumerate() {
            let mut least = (row[j] + 1).min(last[j + 1] + 1).min(last[j] + usize::from(a != b));
            if i > 0 && j > 0 && *a == other[j - 1] && one[i - 1] == *b {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[other.len()]
}

#[cfg(test)]
mod tests {
    use super::distance;

    #[test]
    fn slips_are_near_and_other_words_are_not() {
        for (one, other, expected) in [
            ("nginx", "nginx", Some(0)),
            ("ngnix", "nginx", Some(1)),
            ("Nginx", "nginx", Some(1)),
            ("web", "wep", Some(1)),
            ("web", "api", None),
            ("frontend", "fronted", Some(1)),
            ("frontend", "backend", None),
            ("web", "web-frontend", Some(4)),
            ("", "web", None),
        ] {
            assert_eq!(distance(one, other), expected, "{one} {other}");
            assert_eq!(distance(other, one), expected, "{other} {one}");
        }
    }
}
