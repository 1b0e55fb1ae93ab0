//! Amounts of resources (`100m`, `1Gi`), exact: `k8s.io/apimachinery/pkg/api/resource`.

use std::cmp::Ordering;

/// One unit in the smallest step that quantities know, a billionth.
const UNIT: i128 = 1_000_000_000;
/// The largest number of units of a binary amount, as upstream caps it.
const BINARY_MAX: i128 = 0x7fff_ffff_ffff_ffff;
/// Digits kept of a number; more do not fit any amount that upstream knows.
const DIGITS_MAX: usize = 28;

/// How an amount is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `100m`, `5k`.
    DecimalSi,
    /// `1e3`.
    DecimalExponent,
    /// `1Gi`.
    BinarySi,
}

/// A parsed quantity. Amounts are equal and ordered by value, however they are written.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    nanos: i128,
    format: Format,
}

/// Why a text is no quantity, in upstream's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// It does not look like one.
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Format,
    /// The suffix is not known.
    #[error("unable to parse quantity's suffix")]
    Suffix,
    /// The number cannot be read.
    #[error("unable to parse numeric part of quantity")]
    Number,
}

/// Parses a quantity. Below a billionth it rounds away from zero, as upstream.
///
/// # Errors
/// In upstream's words.
pub fn parse(text: &str) -> Result<Amount, QuantityError> {
    let negative = text.starts_with('-');
    let number = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = number.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(number.len());
    let (digits, suffix) = number.split_at(end);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.len() + fraction.len() == 0 || fraction.contains('.') {
        return Err(QuantityError::Format);
    }
    let (scale, format) = interpret(suffix)?;
    let whole = whole.trim_start_matches('0');
    let fraction = fraction.trim_end_matches('0');
    if whole.len() + fraction.len() > DIGITS_MAX {
        return Err(QuantityError::Number);
    }
    let mantissa: i128 =
        format!("0{whole}{fraction}").parse().map_err(|_| QuantityError::Number)?;
    let fraction = i32::try_from(fraction.len()).map_err(|_| QuantityError::Number)?;
    let nanos = match scale {
        Scale::Binary(power) => {
            let units = mantissa.saturating_mul(1_i128 << power);
            scaled(units, 9 - fraction).min(BINARY_MAX * UNIT)
        }
        Scale::Decimal(power) => scaled(mantissa, 9 + power - fraction),
    };
    let small = format == Format::BinarySi && nanos > 0 && nanos < UNIT;
    let format = if small { Format::DecimalSi } else { format };
    Ok(Amount { nanos: if negative { -nanos } else { nanos }, format })
}

enum Scale {
    /// A power of two.
    Binary(u32),
    /// A power of ten.
    Decimal(i32),
}

fn interpret(suffix: &str) -> Result<(Scale, Format), QuantityError> {
    let decimal = |power| Ok((Scale::Decimal(power), Format::DecimalSi));
    let binary = |power| Ok((Scale::Binary(power), Format::BinarySi));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        other => match other.strip_prefix(['e', 'E']).map(str::parse::<i32>) {
            Some(Ok(power)) => Ok((Scale::Decimal(power.clamp(-60, 60)), Format::DecimalExponent)),
            _ if other.bytes().all(|byte| b"eEinumkKMGTP+-0123456789".contains(&byte)) => {
                Err(QuantityError::Suffix)
            }
            _ => Err(QuantityError::Format),
        },
    }
}

/// `value` times ten to `power`, away from zero.
fn scaled(value: i128, power: i32) -> i128 {
    let ten = |power: u32| 10_i128.checked_pow(power).unwrap_or(i128::MAX);
    if power >= 0 {
        value.saturating_mul(ten(power.unsigned_abs()))
    } else {
        divided(value, ten(power.unsigned_abs()))
    }
}

fn divided(value: i128, divisor: i128) -> i128 {
    value / divisor + i128::from(value % divisor != 0) * value.signum()
}

impl Amount {
    /// Billionths.
    #[must_use]
    pub fn nanos(self) -> i128 {
        self.nanos
    }

    /// Thousandths, away from zero (`MilliValue`).
    #[must_use]
    pub fn millis(self) -> i128 {
        divided(self.nanos, 1_000_000)
    }

    /// Whole units, away from zero (`Value`).
    #[must_use]
    pub fn units(self) -> i128 {
        divided(self.nanos, UNIT)
    }

    /// The same amount in whole thousandths, as the API stores resource lists.
    #[must_use]
    pub fn rounded_to_millis(self) -> Self {
        Self { nanos: self.millis() * 1_000_000, ..self }
    }

    /// The one way to write the amount (`CanonicalizeBytes`).
    #[must_use]
    pub fn canonical(self) -> String {
        let whole = self.nanos % UNIT == 0;
        let small = self.nanos.abs() < 1024 * UNIT;
        if self.format == Format::BinarySi && whole && !small {
            return binary_text(self.nanos / UNIT);
        }
        let (mut mantissa, mut power) = (self.nanos, -9);
        if mantissa == 0 {
            return "0".to_owned();
        }
        while mantissa % 1000 == 0 && (power < 18 || self.format == Format::DecimalExponent) {
            mantissa /= 1000;
            power += 3;
        }
        if self.format == Format::DecimalExponent {
            return if power == 0 { mantissa.to_string() } else { format!("{mantissa}e{power}") };
        }
        let suffix = match power {
            -9 => "n",
            -6 => "u",
            -3 => "m",
            0 => "",
            3 => "k",
            6 => "M",
            9 => "G",
            12 => "T",
            15 => "P",
            _ => "E",
        };
        format!("{mantissa}{suffix}")
    }
}

fn binary_text(mut units: i128) -> String {
    let mut suffix = "";
    for next in ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"] {
        if units % 1024 != 0 {
            break;
        }
        units /= 1024;
        suffix = next;
    }
    format!("{units}{suffix}")
}

impl PartialEq for Amount {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Amount {}

impl PartialOrd for Amount {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Amount {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// Compares two quantities by value.
///
/// # Errors
/// When one of them does not parse.
pub fn compare(left: &str, right: &str) -> Result<Ordering, QuantityError> {
    Ok(parse(left)?.cmp(&parse(right)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn canonical_forms_are_upstreams() {
        for (text, canonical) in [
            ("0", "0"),
            ("0.0", "0"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1.5", "1500m"),
            ("+1", "1"),
            ("-1.5", "-1500m"),
            ("100000", "100k"),
            ("1k", "1k"),
            ("1024", "1024"),
            ("1Ki", "1Ki"),
            ("1024Ki", "1Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Mi", "512Ki"),
            ("16000Ki", "16000Ki"),
            ("1023Ki", "1023Ki"),
            ("0.0001Ki", "102400u"),
            ("0.5Ki", "512"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("5e0", "5"),
            ("1E", "1E"),
            ("1000E", "1000E"),
            ("1.", "1"),
            (".5", "500m"),
            ("0.0000000001", "1n"),
            ("100Ei", "9223372036854775807"),
        ] {
            assert_eq!(parse(text).map(Amount::canonical), Ok(canonical.to_owned()), "{text}");
        }
    }

    #[test]
    fn malformed_quantities_name_their_error() {
        for text in ["", ".", "1.2.3", "one", "1 ", "1_0", "1KI"] {
            assert_eq!(parse(text).err(), Some(QuantityError::Format), "{text}");
        }
        for text in ["1mm", "1K", "1e", "1mi"] {
            assert_eq!(parse(text).err(), Some(QuantityError::Suffix), "{text}");
        }
    }

    #[test]
    fn amounts_compare_by_value() {
        assert_eq!(compare("1Gi", "1024Mi"), Ok(Ordering::Equal));
        assert_eq!(compare("1G", "1Gi"), Ok(Ordering::Less));
        assert_eq!(compare("250m", "0.2"), Ok(Ordering::Greater));
        assert_eq!(parse("1.0001").map(Amount::millis), Ok(1001));
        assert_eq!(parse("-1.5").map(Amount::units), Ok(-2));
    }

    proptest! {
        #[test]
        fn canonical_text_has_the_same_value_and_is_stable(number in 0_u64..10_000_000_000, suffix in "(n|u|m||k|M|G|Ki|Mi|Gi|e3)") {
            let amount = parse(&format!("{number}{suffix}")).unwrap();
            let text = amount.canonical();
            let again = parse(&text).unwrap();
            prop_assert_eq!(again, amount);
            prop_assert_eq!(again.canonical(), text);
        }
    }
}
