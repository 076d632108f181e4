//! Signals by number and by name (signal(7)).

/// Number of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(pub i32);

const NAMES: [(&str, i32); 34] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("IOT", libc::SIGABRT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("POLL", libc::SIGIO),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

/// The real-time signals that programs may use: the C library keeps 32 and 33.
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

impl Signal {
    /// From a number or a name, with or without `SIG`, in any case.
    pub fn parse(word: &str) -> Option<Self> {
        if let Ok(number) = word.parse::<i32>() {
            return (1..=*REAL_TIME.end())
                .contains(&number)
                .then_some(Signal(number));
        }
        let upper = word.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let known = NAMES.iter().find(|(known, _)| *known == name);
        if let Some((_, number)) = known {
            return Some(Signal(*number));
        }
        let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
            (Some(""), _) => *REAL_TIME.start(),
            (_, Some("")) => *REAL_TIME.end(),
            (Some(more), _) => REAL_TIME
                .start()
                .checked_add(more.strip_prefix('+')?.parse().ok()?)?,
            (_, Some(less)) => REAL_TIME
                .end()
                .checked_sub(less.strip_prefix('-')?.parse().ok()?)?,
            (None, None) => return None,
        };
        REAL_TIME.contains(&number).then_some(Signal(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names() {
        for (word, number) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigterm", 15),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("64", 64),
        ] {
            assert_eq!(Signal::parse(word), Some(Signal(number)), "{word}");
        }
        for word in [
            "0", "65", "-9", "", "SIG", "KILLER", "RTMIN+40", "RTMAX+1", "RTMIN+-1", "RTMIN-1",
        ] {
            assert_eq!(Signal::parse(word), None, "{word}");
        }
    }
}
