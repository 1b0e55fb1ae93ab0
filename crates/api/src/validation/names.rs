//! What names, keys and numbers look like, in upstream's words: `apimachinery/pkg/util/validation`.
//!
//! Every function answers with what is wrong, and with nothing when all is well.

use std::net::IpAddr;

use ipnet::IpNet;

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const LABEL_KEY: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

fn lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// Whether all bytes are allowed, and the first and last are `edge`.
fn framed(text: &str, edge: fn(u8) -> bool, inner: &[u8]) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|byte| edge(*byte))
        && bytes.last().is_some_and(|byte| edge(*byte))
        && bytes.iter().all(|byte| edge(*byte) || inner.contains(byte))
}

fn too_long(text: &str, max: usize) -> Option<String> {
    (text.len() > max).then(|| format!("must be no more than {max} characters"))
}

fn regex_error(message: &str, regex: &str, examples: &[&str]) -> String {
    let examples: Vec<String> = examples.iter().map(|example| format!("'{example}', ")).collect();
    format!("{message} (e.g. {}regex used for validation is '{regex}')", examples.join(" or "))
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(|label| framed(label, lower, b"-"))
}

/// A DNS label of RFC 1123.
pub(crate) fn dns1123_label(text: &str) -> Vec<String> {
    let mut errors: Vec<String> = too_long(text, 63).into_iter().collect();
    if !framed(text, lower, b"-") {
        errors.push(if is_subdomain(text) {
            "must not contain dots".to_owned()
        } else {
            regex_error(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
                LABEL,
                &["my-name", "123-abc"],
            )
        });
    }
    errors
}

/// A DNS subdomain of RFC 1123.
pub(crate) fn dns1123_subdomain(text: &str) -> Vec<String> {
    let mut errors: Vec<String> = too_long(text, 253).into_iter().collect();
    if !is_subdomain(text) {
        errors.push(regex_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            SUBDOMAIN,
            &["example.com"],
        ));
    }
    errors
}

/// A DNS subdomain that may hold underscores: a search domain.
pub(crate) fn search_domain(text: &str) -> Vec<String> {
    const LABEL: &str = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
    let mut errors: Vec<String> = too_long(text, 253).into_iter().collect();
    let label = |label: &str| {
        let rest = label.strip_prefix('_').unwrap_or(label);
        framed(rest, lower, b"-_")
    };
    if !text.split('.').all(label) {
        errors.push(regex_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character",
            &format!(r"{LABEL}(\.{LABEL})*"),
            &["example.com"],
        ));
    }
    errors
}

/// A DNS subdomain after `*.`.
pub(crate) fn wildcard_subdomain(text: &str) -> Vec<String> {
    let mut errors: Vec<String> = too_long(text, 253).into_iter().collect();
    if !text.strip_prefix("*.").is_some_and(is_subdomain) {
        errors.push(regex_error(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            &format!(r"\*\.{SUBDOMAIN}"),
            &["*.example.com"],
        ));
    }
    errors
}

/// A label's key, an annotation's, a condition's type: a name with an optional DNS prefix.
pub(crate) fn label_key(text: &str) -> Vec<String> {
    let key_error = |what: &str| {
        regex_error(
            &format!(
                "{what} must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character"
            ),
            LABEL_KEY,
            &["MyName", "my.name", "123-abc"],
        )
    };
    let parts: Vec<&str> = text.split('/').collect();
    let mut errors = Vec::new();
    let name = match parts[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else {
                errors.extend(
                    dns1123_subdomain(prefix).iter().map(|error| format!("prefix part {error}")),
                );
            }
            name
        }
        _ => {
            return vec![format!(
                "{} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                key_error("a valid label key")
            )];
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        errors.push("name part must be no more than 63 bytes".to_owned());
    }
    if !framed(name, |byte| byte.is_ascii_alphanumeric(), b"-_.") {
        errors.push(key_error("name part"));
    }
    errors
}

/// A label's value.
pub(crate) fn label_value(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > 63 {
        errors.push("must be no more than 63 bytes".to_owned());
    }
    if !text.is_empty() && !framed(text, |byte| byte.is_ascii_alphanumeric(), b"-_.") {
        errors.push(regex_error(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            &format!("({LABEL_KEY})?"),
            &["MyValue", "my_value", "12345"],
        ));
    }
    errors
}

/// The name of a port of a pod (IANA service name).
pub(crate) fn port_name(text: &str) -> Vec<String> {
    let mut errors: Vec<String> = too_long(text, 15).into_iter().collect();
    let mut wrong = |bad: bool, message: &str| {
        if bad {
            errors.push(message.to_owned());
        }
    };
    let charset = !text.is_empty() && text.bytes().all(|byte| lower(byte) || byte == b'-');
    wrong(!charset, "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)");
    wrong(
        !text.bytes().any(|byte| byte.is_ascii_lowercase()),
        "must contain at least one letter (a-z)",
    );
    wrong(text.contains("--"), "must not contain consecutive hyphens");
    wrong(text.starts_with('-') || text.ends_with('-'), "must not begin or end with a hyphen");
    errors
}

/// A port's number.
pub(crate) fn port_number(port: i64) -> Vec<String> {
    in_range(port, 1, 65535)
}

/// A number within bounds.
pub(crate) fn in_range(value: i64, low: i64, high: i64) -> Vec<String> {
    let inside = (low..=high).contains(&value);
    if inside { Vec::new() } else { vec![format!("must be between {low} and {high}, inclusive")] }
}

/// A key of a `ConfigMap` or Secret.
pub(crate) fn config_key(text: &str) -> Vec<String> {
    let mut errors: Vec<String> = too_long(text, 253).into_iter().collect();
    if text.is_empty()
        || !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    {
        errors.push(regex_error(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    match text {
        "." => errors.push("must not be '.'".to_owned()),
        ".." => errors.push("must not be '..'".to_owned()),
        _ if text.starts_with("..") => errors.push("must not start with '..'".to_owned()),
        _ => {}
    }
    errors
}

/// The name of an environment variable.
pub(crate) fn env_name(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.is_empty() {
        errors.push("environment variable name must be non-empty".to_owned());
    }
    if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'=') {
        errors.push("a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned());
    }
    errors
}

/// The name of an HTTP header.
pub(crate) fn header_name(text: &str) -> Vec<String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Vec::new();
    }
    vec![regex_error(
        "a valid HTTP header must consist of alphanumeric characters or '-'",
        "[-A-Za-z0-9]+",
        &["X-Header-Name"],
    )]
}

/// Whether this can be the name of a kernel parameter.
pub(crate) fn is_sysctl(text: &str) -> bool {
    text.len() <= 253 && text.split(['.', '/']).all(|segment| framed(segment, lower, b"-_"))
}

/// A percentage.
pub(crate) fn percent(text: &str) -> Vec<String> {
    let digits = text.strip_suffix('%').unwrap_or("");
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Vec::new();
    }
    vec![regex_error(
        "a valid percent string must be a numeric string followed by an ending '%'",
        "[0-9]+%",
        &["1%", "93%"],
    )]
}

/// An IP address. Fields older than the rule may hold IPv6 in any notation.
pub(crate) fn ip(text: &str) -> Vec<String> {
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_some() => {
            vec!["must not be an IPv4-mapped IPv6 address".to_owned()]
        }
        Ok(_) => Vec::new(),
        Err(_) if sloppy_ip(text).is_some() => vec!["must not have leading 0s".to_owned()],
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()],
    }
}

/// An IP address in the one notation of RFC 5952.
pub(crate) fn canonical_ip(text: &str) -> Vec<String> {
    match text.parse::<IpAddr>() {
        Ok(parsed) if ip(text).is_empty() && parsed.to_string() != text => {
            vec![format!("must be in canonical form (\"{parsed}\")")]
        }
        _ => ip(text),
    }
}

/// An IPv4 address with leading zeros, which old releases took.
pub(crate) fn sloppy_ip(text: &str) -> Option<IpAddr> {
    let parts: Vec<u8> = text.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
    <[u8; 4]>::try_from(parts).ok().map(IpAddr::from)
}

/// A subnet in CIDR form. Fields older than the rule may hold IPv6 in any notation.
pub(crate) fn cidr(text: &str) -> Vec<String> {
    let why = match strict_net(text) {
        None if sloppy_net(text).is_some() => "must not have leading 0s in IP or prefix length",
        None => "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
        Some(IpNet::V6(net)) if net.addr().to_ipv4_mapped().is_some() => {
            "must not have an IPv4-mapped IPv6 address"
        }
        Some(net) if net.addr() != net.network() => {
            "must not have bits set beyond the prefix length"
        }
        Some(_) => return Vec::new(),
    };
    vec![why.to_owned()]
}

/// A subnet without leading zeros anywhere.
pub(crate) fn strict_net(text: &str) -> Option<IpNet> {
    let (ip, bits) = text.split_once('/')?;
    let padded = bits.len() > 1 && bits.starts_with('0') || bits.starts_with('+');
    if padded { None } else { IpNet::new(ip.parse().ok()?, bits.parse().ok()?).ok() }
}

/// A subnet with leading zeros, which old releases took.
pub(crate) fn sloppy_net(text: &str) -> Option<IpNet> {
    let (ip, bits) = text.split_once('/')?;
    let ip = ip.parse::<IpAddr>().ok().or_else(|| sloppy_ip(ip))?;
    IpNet::new(ip, bits.parse().ok()?).ok()
}

/// A subnet in CIDR form, in one notation.
pub(crate) fn canonical_cidr(text: &str) -> Vec<String> {
    match strict_net(text) {
        Some(net) if cidr(text).is_empty() && net.to_string() != text => {
            vec![format!("must be in canonical form (\"{net}\")")]
        }
        _ => cidr(text),
    }
}

/// Addresses that cannot be an endpoint.
pub(crate) fn non_special_ip(text: &str) -> Vec<String> {
    let Ok(ip) = text.parse::<IpAddr>() else {
        return vec!["must be a valid IP address".to_owned()];
    };
    let mut errors = Vec::new();
    if ip.is_unspecified() {
        errors.push(format!("may not be unspecified ({text})"));
    }
    if ip.is_loopback() {
        errors.push("may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned());
    }
    let (link_local, multicast) = match ip {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => {
            (v6.segments()[0] & 0xffc0 == 0xfe80, v6.segments()[0] & 0xff0f == 0xff02)
        }
    };
    if link_local {
        errors.push("may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned());
    }
    if multicast {
        errors.push(
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned(),
        );
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_names_have_no_errors() {
        assert!(dns1123_label("a-1").is_empty());
        assert!(dns1123_subdomain("a.b-c.1").is_empty());
        assert!(label_key("example.com/My_Name.x").is_empty());
        assert!(label_value("").is_empty() && label_value("A_b.c-1").is_empty());
        assert!(port_name("http-2").is_empty());
        assert!(config_key("a.b_c-D").is_empty() && config_key(".hidden").is_empty());
        assert!(ip("10.0.0.1").is_empty() && ip("fd00::1").is_empty());
        assert!(cidr("10.0.0.0/8").is_empty());
        assert!(percent("25%").is_empty() && env_name("A B").is_empty());
        assert!(non_special_ip("10.1.2.3").is_empty() && wildcard_subdomain("*.a.b").is_empty());
        assert!(header_name("X-A").is_empty());
    }

    #[test]
    fn messages_are_upstreams() {
        let label = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
        assert_eq!(dns1123_label("A"), [label]);
        assert_eq!(dns1123_label("a.b"), ["must not contain dots"]);
        let subdomain = r"a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
        assert_eq!(dns1123_subdomain("a_b"), [subdomain]);
        assert_eq!(cidr("10.0.0.1/8"), ["must not have bits set beyond the prefix length"]);
        assert_eq!(ip("010.0.0.1"), ["must not have leading 0s"]);
        assert_eq!(canonical_ip("FD00::1"), ["must be in canonical form (\"fd00::1\")"]);
    }
}
