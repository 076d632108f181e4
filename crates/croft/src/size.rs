//! Sizes as people write them.

/// Reads `512M`, `2G`, `512MiB`, `1024k`.
pub fn parse(text: &str) -> Result<u64, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err("give a number with K, M, G or T, for example 512M".to_owned()),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| "give a number with K, M, G or T, for example 512M".to_owned())
}

/// Writes it with the largest unit that leaves no fraction.
pub fn format(bytes: u64) -> String {
    let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
    let fits = |(shift, _): &&(u32, &str)| bytes != 0 && bytes.is_multiple_of(1 << shift);
    match units.iter().find(fits) {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_it_reads() {
        for text in ["512M", "2G", "1025K", "3T"] {
            assert_eq!(format(parse(text).unwrap()), text);
        }
        assert_eq!(format(0), "0");
        assert_eq!(format(1000), "1000");
    }

    #[test]
    fn reads_what_people_write() {
        for (text, bytes) in [
            ("512M", 512 << 20),
            ("2G", 2 << 30),
            ("512MiB", 512 << 20),
            ("1gib", 1 << 30),
            ("65536k", 64 << 20),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for bad in [
            "",
            "512",
            "M",
            "-1G",
            "1.5G",
            "5MB",
            "99999999999999999999G",
            "18446744073709551615T",
            "1 G",
            "½G",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
