//! Scalars and the small messages that are scalars in JSON: times, quantities, numbers or names, raw JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Number, Value};

use super::message::bytes_of;
use super::wire::{Payload, Reader, text};
use crate::schema::table::Type;

pub(super) fn read(ty: &Type, payload: Payload<'_>) -> Result<Value, String> {
    match (ty, payload) {
        (Type::String, _) => Ok(text(bytes_of(payload)?)?.into()),
        (Type::Bytes, _) => Ok(STANDARD.encode(bytes_of(payload)?).into()),
        // The empty payload stands for an absent map value.
        (Type::Bool, Payload::Varint(value)) => Ok((value != 0).into()),
        (Type::Int32, Payload::Varint(value)) => Ok(low_i32(value).into()),
        (Type::Int64, Payload::Varint(value)) => Ok(value.cast_signed().into()),
        (Type::Double, Payload::Fixed64(bits)) => {
            Ok(Number::from_f64(f64::from_bits(bits)).map_or(Value::Null, Value::Number))
        }
        (Type::Bool | Type::Int32 | Type::Int64 | Type::Double, _) => {
            Err("proto: wrong wireType for a number".to_owned())
        }
        (Type::Time, _) => time(bytes_of(payload)?, 0),
        (Type::MicroTime, _) => time(bytes_of(payload)?, 6),
        (Type::Duration, _) => duration(bytes_of(payload)?),
        (Type::Quantity, _) => quantity(bytes_of(payload)?),
        (Type::IntOrString, _) => int_or_string(bytes_of(payload)?),
        _ => raw_json(bytes_of(payload)?),
    }
}

/// Protobuf carries negative 32-bit numbers as 64 bits; the low half counts.
fn low_i32(value: u64) -> i32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    i32::from_le_bytes([a, b, c, d])
}

/// `meta.Time` and `meta.MicroTime`; no bytes are the zero time, which JSON leaves out.
fn time(bytes: &[u8], digits: u8) -> Result<Value, String> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0_i64, 0_i32);
    let mut reader = Reader::new(bytes);
    while let Some((tag, payload)) = reader.next()? {
        match (tag, payload) {
            (1, Payload::Varint(value)) => seconds = value.cast_signed(),
            (2, Payload::Varint(value)) => nanos = low_i32(value),
            _ => {}
        }
    }
    let time = Timestamp::new(seconds, if digits == 0 { 0 } else { nanos.clamp(0, 999_999_999) })
        .map_err(|_| format!("proto: time {seconds}s out of range"))?;
    let text = if digits == 0 {
        time.strftime("%Y-%m-%dT%H:%M:%SZ")
    } else {
        time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ")
    };
    Ok(text.to_string().into())
}

/// `meta.Duration` as Go prints one, in the coarsest units that are exact: `1h30m0s`, `1.5s`.
fn duration(bytes: &[u8]) -> Result<Value, String> {
    let mut nanos = 0_i64;
    let mut reader = Reader::new(bytes);
    while let Some((tag, payload)) = reader.next()? {
        if let (1, Payload::Varint(value)) = (tag, payload) {
            nanos = value.cast_signed();
        }
    }
    Ok(duration_text(nanos).into())
}

fn duration_text(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let total = nanos.unsigned_abs();
    let fraction = |value: u64, unit: u64| {
        let digits = format!(
            "{:0width$}",
            value % unit,
            width = usize::try_from(unit.ilog10()).unwrap_or(0)
        );
        let digits = digits.trim_end_matches('0');
        let dot = if digits.is_empty() || unit == 1 { "" } else { "." };
        format!("{}{dot}{}", value / unit, if unit == 1 { "" } else { digits })
    };
    let body = match total {
        0 => "0s".to_owned(),
        1..1_000 => format!("{total}ns"),
        1_000..1_000_000 => format!("{}µs", fraction(total, 1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", fraction(total, 1_000_000)),
        _ => {
            let minutes = total / 60_000_000_000;
            let seconds = fraction(total % 60_000_000_000, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    };
    format!("{sign}{body}")
}

fn quantity(bytes: &[u8]) -> Result<Value, String> {
    let mut found = "0";
    let mut reader = Reader::new(bytes);
    while let Some((tag, payload)) = reader.next()? {
        if let (1, Payload::Bytes(bytes)) = (tag, payload) {
            found = text(bytes)?;
        }
    }
    Ok(found.into())
}

fn int_or_string(bytes: &[u8]) -> Result<Value, String> {
    let (mut kind, mut number, mut name) = (0, 0, "");
    let mut reader = Reader::new(bytes);
    while let Some((tag, payload)) = reader.next()? {
        match (tag, payload) {
            (1, Payload::Varint(value)) => kind = value,
            (2, Payload::Varint(value)) => number = low_i32(value),
            (3, Payload::Bytes(bytes)) => name = text(bytes)?,
            _ => {}
        }
    }
    Ok(if kind == 0 { number.into() } else { name.into() })
}

/// RawExtension, FieldsV1 and JSON: JSON text in tag 1.
fn raw_json(bytes: &[u8]) -> Result<Value, String> {
    let mut reader = Reader::new(bytes);
    while let Some((tag, payload)) = reader.next()? {
        if let (1, Payload::Bytes(raw)) = (tag, payload) {
            if raw.is_empty() {
                return Ok(Value::Null);
            }
            return serde_json::from_slice(raw).map_err(|error| format!("embedded JSON: {error}"));
        }
    }
    Ok(Value::Null)
}

#[cfg(test)]
mod tests {
    use super::duration_text;

    #[test]
    fn durations_print_as_go_prints_them() {
        for (nanos, wanted) in [
            (0, "0s"),
            (5_400_000_000_000, "1h30m0s"),
            (1_500_000_000, "1.5s"),
            (1_500_000, "1.5ms"),
            (60_000_000_000, "1m0s"),
            (-2_000_000_000, "-2s"),
            (7, "7ns"),
        ] {
            assert_eq!(duration_text(nanos), wanted);
        }
    }
}
