//! Sizes as people write them.

/// Least guest memory: below it no kernel can be placed.
const MEMORY_MIN: u64 = 16 << 20;
/// Most guest memory: the guest-physical space of a portable machine is
/// 40 bits wide and holds device memory too.
const MEMORY_MAX: u64 = 1 << 39;
/// Guest memory is made of whole pages.
const PAGE: u64 = 4096;

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

/// Reads the size of guest memory.
pub fn parse_memory(text: &str) -> Result<u64, String> {
    let bytes = parse(text)?;
    if bytes < MEMORY_MIN {
        Err("too little for a machine; give at least 16M".to_owned())
    } else if bytes > MEMORY_MAX {
        Err("too much for a machine; give at most 512G".to_owned())
    } else if !bytes.is_multiple_of(PAGE) {
        Err("give a multiple of 4K".to_owned())
    } else {
        Ok(bytes)
    }
}

/// A size for people.
pub fn show(bytes: u64) -> String {
    if bytes >= 10 << 30 {
        format!("{}G", bytes >> 30)
    } else {
        format!("{}M", bytes >> 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, bytes) in [
            ("512M", 512 << 20),
            ("2G", 2 << 30),
            ("512MiB", 512 << 20),
            ("1gib", 1 << 30),
            ("65536k", 64 << 20),
        ] {
            assert_eq!(parse_memory(text), Ok(bytes), "{text}");
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
            "1M",
            "0G",
            "600G",
            "1000T",
            "16385K",
            "1 G",
            "½G",
        ] {
            assert!(parse_memory(bad).is_err(), "{bad}");
        }
    }
}
