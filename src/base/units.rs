//! Quantities in units that people read: bytes, floating-point operations, counts.

/// Bytes with a binary unit (powers of 1024), for example `2.5 MiB`.
pub fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ => format!("{value:.1} {}", units[unit]),
    }
}

/// Floating-point operations with a decimal unit, for example `40.6 PFLOP`. From 1 kFLOP on never a number that rounds to 0
/// or to more than four digits.
pub fn flops(count: f64) -> String {
    let units = [
        "FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP",
    ];
    let mut value = count;
    let mut unit = 0;
    // 999.95 would be printed as 1000.0.
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1e3;
        unit += 1;
    }
    match unit {
        0 => format!("{count:.0} FLOP"),
        _ => format!("{value:.1} {}", units[unit]),
    }
}

/// So many seconds in minutes and seconds: `7 min 26 s`, and without minutes below one.
pub fn duration(seconds: u64) -> String {
    match seconds / 60 {
        0 => format!("{seconds} s"),
        minutes => format!("{minutes} min {} s", seconds % 60),
    }
}

/// A whole number with separators between thousands: `309,984,256`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// So many of a thing, whose plural ends in s: `1 step`, `60,033 parameters`.
pub fn counted(number: u64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", grouped(number))
}
