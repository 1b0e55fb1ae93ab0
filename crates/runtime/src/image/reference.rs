//! Image references and their normal form (upstream: distribution/reference).

use std::fmt;

use super::Reference;
use crate::error::ImageError;

/// Longest repository name (distribution's `NameTotalLengthMax`).
const NAME_LENGTH_MAX: usize = 255;
/// Longest tag.
const TAG_LENGTH_MAX: usize = 128;

impl Reference {
    /// Parses and normalises: `nginx` is `docker.io/library/nginx:latest`.
    ///
    /// # Errors
    /// When the text has no valid form.
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        Self::normalise(text)
            .ok_or_else(|| ImageError::InvalidReference { reference: text.to_owned() })
    }

    fn normalise(text: &str) -> Option<Self> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(valid_digest(digest)?)),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(valid_tag(tag)?)),
            _ => (rest, None),
        };
        let is_host = |part: &str| part.contains(['.', ':']) || part == "localhost";
        let (registry, path) = match name.split_once('/') {
            Some((first, path)) if is_host(first) => (first, path),
            _ => ("docker.io", name),
        };
        let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
        let official = registry == "docker.io" && !path.contains('/');
        let repository = if official { format!("library/{path}") } else { path.to_owned() };
        let valid = valid_host(registry)
            && repository.len() <= NAME_LENGTH_MAX
            && repository.split('/').all(valid_component);
        let latest = || digest.is_none().then(|| "latest".to_owned());
        let tag = tag.map(str::to_owned).or_else(latest);
        let digest = digest.map(str::to_owned);
        valid.then(|| Self { registry: registry.to_owned(), repository, tag, digest })
    }

    /// Registry and repository, such as `docker.io/library/nginx`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// `sha256:` and 64 lower-case hexadecimal digits.
pub(crate) fn valid_digest(digest: &str) -> Option<&str> {
    let hex = digest.strip_prefix("sha256:")?;
    let good = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    (hex.len() == 64 && hex.chars().all(good)).then_some(digest)
}

fn valid_tag(tag: &str) -> Option<&str> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let good = tag.starts_with(word) && tag.chars().all(|c| word(c) || c == '.' || c == '-');
    (good && tag.len() <= TAG_LENGTH_MAX).then_some(tag)
}

fn valid_host(host: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
    host.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[') && host.chars().all(good)
}

/// Lower-case words joined by `.`, `_`, `__` or dashes.
fn valid_component(part: &str) -> bool {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separated = part.split(word).filter(|between| !between.is_empty());
    let mut good =
        separated.map(|one| matches!(one, "." | "_" | "__") || one.chars().all(|c| c == '-'));
    part.starts_with(word) && part.ends_with(word) && good.all(|one| one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_as_docker_does() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let cases = [
            ("nginx".to_owned(), "docker.io/library/nginx:latest".to_owned()),
            ("nginx:stable".into(), "docker.io/library/nginx:stable".into()),
            ("mycompany/web-app".into(), "docker.io/mycompany/web-app:latest".into()),
            ("localhost:5000/a/b:c".into(), "localhost:5000/a/b:c".into()),
            ("registry.k8s.io/pause:3.9".into(), "registry.k8s.io/pause:3.9".into()),
            ("index.docker.io/x".into(), "docker.io/library/x:latest".into()),
            (format!("redis@{digest}"), format!("docker.io/library/redis@{digest}")),
        ];
        for (given, expected) in cases {
            assert_eq!(Reference::parse(&given).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn malformed_names_are_refused() {
        for given in ["", "Nginx", "a//b", "a:", "a@sha256:1", "-a", "a b", "../x"] {
            assert!(Reference::parse(given).is_err(), "{given}");
        }
        let text = Reference::parse("Bad").unwrap_err().to_string();
        assert_eq!(text, "couldn't parse image reference \"Bad\": invalid reference format");
    }
}
