//! What the kernel is told about a container and its program.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxMemoryPolicy, LinuxPersonality, LinuxPersonalityDomain,
    LinuxSchedulerFlag, LinuxSchedulerPolicy, MemoryPolicyFlagType, MemoryPolicyModeType,
    PosixRlimit, PosixRlimitType, Process, Scheduler,
};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstatfs, openat, openat2};
use rustix::io::Errno;
use rustix::process::Pid;

use crate::error::At;
use crate::namespaces::{NETWORK, TIME, USER};
use crate::plan::Plan;
use crate::sys::PROC_MAGIC;
use crate::{Error, Step, sys};

/// Most processors and memory nodes of a list (`CONFIG_NR_CPUS`).
const NUMBERS: usize = 8192;

/// The host's procfs: unlike a container's it is one for sure.
#[derive(Debug)]
pub struct Proc(OwnedFd);

impl Proc {
    /// Opens it, while the root is the host's.
    pub fn open() -> Result<Self, Error> {
        let what = || "the host's /proc";
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = openat(CWD, c"/proc", flags, Mode::empty()).at(Step::Init, what)?;
        if fstatfs(&proc).at(Step::Init, what)?.f_type != PROC_MAGIC {
            let text = "the host's /proc is not what the kernel shows";
            return Err(Error::new(Step::Init, text));
        }
        Ok(Proc(proc))
    }

    /// Writes to a file of it, which nothing can be mounted over on the way.
    pub fn write(&self, file: &str, value: &[u8]) -> Result<(), Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat2(&self.0, file, flags, Mode::empty(), resolve)?;
        match rustix::io::write(file, value)? {
            count if count == value.len() => Ok(()),
            _ => Err(Errno::IO),
        }
    }

    /// The root of a process.
    pub fn root_of(&self, pid: Pid) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let path = format!("{}/root", pid.as_raw_nonzero());
        openat(&self.0, path.as_str(), flags, Mode::empty())
    }

    /// This process, as the host numbers it.
    pub fn own_id(&self) -> Option<Pid> {
        let target = rustix::fs::readlinkat(&self.0, c"self", Vec::new()).ok()?;
        Pid::from_raw(target.to_str().ok()?.parse().ok()?)
    }
}

impl AsFd for Proc {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Settings of the container's namespaces.
pub fn namespaces(plan: &Plan<'_>, proc: &Proc) -> Result<(), Error> {
    if plan.namespaces.new & NETWORK != 0 {
        sys::raise_loopback().at(Step::Settings, || "the interface lo")?;
    }
    if let Some(name) = plan
        .spec
        .hostname()
        .as_deref()
        .filter(|name| !name.is_empty())
    {
        let set = rustix::system::sethostname(name.as_bytes());
        set.at(Step::Settings, || format!("the hostname {name:?}"))?;
    }
    let domain = plan.spec.domainname().as_deref();
    if let Some(name) = domain.filter(|name| !name.is_empty()) {
        let set = rustix::system::setdomainname(name.as_bytes());
        set.at(Step::Settings, || format!("the domainname {name:?}"))?;
    }
    for (file, value) in &plan.settings {
        let what = || format!("the setting {} = {value:?}", file.replace('/', "."));
        let path = format!("sys/{file}");
        proc.write(&path, value.as_bytes())
            .at(Step::Settings, what)?;
    }
    Ok(())
}

/// A time namespace that is new: its clocks are set before anybody is in it.
pub fn time(plan: &Plan<'_>, proc: &Proc) -> Result<(), Error> {
    if plan.namespaces.new & TIME == 0 {
        return Ok(());
    }
    let what = || "a time namespace";
    sys::unshare(TIME).at(Step::Namespaces, what)?;
    if !plan.offsets.is_empty() {
        // Else the file would not be this process's, whose ids have changed.
        let hidden = sys::prctl(libc::PR_GET_DUMPABLE, 0, 0).at(Step::Settings, what)?;
        if plan.namespaces.has(USER) {
            sys::prctl(libc::PR_SET_DUMPABLE, 1, 0).at(Step::Settings, what)?;
        }
        for (clock, seconds, rest) in &plan.offsets {
            let line = format!("{clock} {seconds} {rest}\n");
            let written = proc.write("self/timens_offsets", line.as_bytes());
            written.at(Step::Settings, || format!("the time offset of {clock}"))?;
        }
        if hidden == 0 {
            sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).at(Step::Settings, what)?;
        }
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let path = c"self/ns/time_for_children";
    let namespace = openat(proc, path, flags, Mode::empty()).at(Step::Namespaces, what)?;
    sys::setns(namespace, TIME).at(Step::Namespaces, what)
}

/// The number of a limit's resource (getrlimit(2)), behind its name.
pub fn resource(limit: &PosixRlimit) -> (PosixRlimitType, u32) {
    let kind = limit.typ();
    let number = match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    };
    // glibc's type of it is this one, musl's is signed.
    #[allow(clippy::unnecessary_cast)]
    let number = number as u32;
    (kind, number)
}

/// Which of two limits of a kind was meant nobody knows (runtime-spec,
/// `config.md`, POSIX process).
pub fn check_limits(process: Option<&Process>) -> Result<(), Error> {
    let given = process.and_then(|process| process.rlimits().as_deref());
    let mut seen = Vec::new();
    for limit in given.unwrap_or_default() {
        if seen.contains(&limit.typ()) {
            let text = format!("there are two limits {}", limit.typ());
            return Err(Error::new(Step::Spec, text));
        }
        seen.push(limit.typ());
    }
    Ok(())
}

/// Limits of the program.
pub fn limits(limits: &[PosixRlimit]) -> Result<(), Error> {
    for limit in limits {
        let (kind, number) = resource(limit);
        sys::set_limit(None, number, limit.soft(), limit.hard()).at(Step::Settings, || {
            let (soft, hard) = (limit.soft(), limit.hard());
            format!("the limit {kind} of {soft}, at most {hard}")
        })?;
    }
    Ok(())
}

/// How the program is scheduled.
pub fn scheduler(given: &Scheduler) -> Result<(), Error> {
    let what = || format!("the scheduler {}", given.policy());
    let policy = match given.policy() {
        LinuxSchedulerPolicy::SchedOther => libc::SCHED_OTHER,
        LinuxSchedulerPolicy::SchedFifo => libc::SCHED_FIFO,
        LinuxSchedulerPolicy::SchedRr => libc::SCHED_RR,
        LinuxSchedulerPolicy::SchedBatch => libc::SCHED_BATCH,
        // Reserved, and of no kernel (sched(7)).
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => libc::SCHED_IDLE,
        LinuxSchedulerPolicy::SchedDeadline => libc::SCHED_DEADLINE,
    };
    let mut flags = 0;
    for flag in given.flags().iter().flatten() {
        // `linux/sched.h`.
        flags |= match flag {
            LinuxSchedulerFlag::SchedResetOnFork => 0x01,
            LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
            LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
            LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
            LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
            LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
            LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
        };
    }
    let number = |what: Option<i32>| u32::try_from(what.unwrap_or(0));
    let attr = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: policy as u32,
        sched_flags: flags,
        sched_nice: given.nice().unwrap_or(0),
        sched_priority: number(*given.priority()).at(Step::Settings, what)?,
        sched_runtime: given.runtime().unwrap_or(0),
        sched_deadline: given.deadline().unwrap_or(0),
        sched_period: given.period().unwrap_or(0),
    };
    sys::set_scheduler(&attr).at(Step::Settings, what)
}

/// How its I/O is scheduled (ioprio_set(2)).
pub fn io_priority(given: &LinuxIOPriority) -> Result<(), Error> {
    let class = match given.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let what = || format!("the I/O priority {} of {}", given.priority(), given.class());
    let level = i32::try_from(given.priority()).ok();
    let level = level.filter(|level| (0..8).contains(level));
    let level = level.ok_or_else(|| Error::new(Step::Settings, format!("{}: 0 to 7", what())))?;
    sys::set_io_priority(class << 13 | level).at(Step::Settings, what)
}

/// Which Linux it believes to be on (personality(2)).
pub fn personality(given: &LinuxPersonality) -> Result<(), Error> {
    if given
        .flags()
        .as_ref()
        .is_some_and(|flags| !flags.is_empty())
    {
        let text = "flags of a personality are not supported";
        return Err(Error::new(Step::Settings, text));
    }
    let domain = match given.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    };
    sys::set_personality(domain).at(Step::Settings, || "the personality")
}

/// Where its memory is (set_mempolicy(2)).
pub fn memory_policy(given: &LinuxMemoryPolicy) -> Result<(), Error> {
    let mode = match given.mode() {
        MemoryPolicyModeType::MpolDefault => libc::MPOL_DEFAULT,
        MemoryPolicyModeType::MpolPreferred => libc::MPOL_PREFERRED,
        MemoryPolicyModeType::MpolBind => libc::MPOL_BIND,
        MemoryPolicyModeType::MpolInterleave => libc::MPOL_INTERLEAVE,
        MemoryPolicyModeType::MpolLocal => libc::MPOL_LOCAL,
        // `linux/mempolicy.h`.
        MemoryPolicyModeType::MpolPreferredMany => 5,
        MemoryPolicyModeType::MpolWeightedInterleave => 6,
    };
    let mut flags = 0;
    for flag in given.flags().iter().flatten() {
        flags |= match flag {
            MemoryPolicyFlagType::MpolFNumaBalancing => libc::MPOL_F_NUMA_BALANCING,
            MemoryPolicyFlagType::MpolFRelativeNodes => libc::MPOL_F_RELATIVE_NODES,
            MemoryPolicyFlagType::MpolFStaticNodes => libc::MPOL_F_STATIC_NODES,
        };
    }
    let nodes = bits(given.nodes().as_deref().unwrap_or_default());
    let nodes = nodes.ok_or_else(|| Error::new(Step::Spec, "memoryPolicy has a wrong list"))?;
    sys::set_memory_policy(mode | flags, &nodes).at(Step::Settings, || "the memory policy")
}

/// On which processors it runs.
pub fn affinity(list: &str) -> Result<(), Error> {
    let processors = bits(list).filter(|bits| !bits.is_empty());
    let wrong = || Error::new(Step::Spec, format!("{list:?} is no list of processors"));
    let processors = processors.ok_or_else(wrong)?;
    sys::set_affinity(&processors).at(Step::Settings, || format!("the processors {list}"))
}

/// A list like `0-3,7` as bits.
fn bits(list: &str) -> Option<Vec<u64>> {
    let mut bits: Vec<u64> = Vec::new();
    for part in list
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        if last >= NUMBERS || first > last {
            return None;
        }
        for number in first..=last {
            let word = number / 64;
            if bits.len() <= word {
                bits.resize(word + 1, 0);
            }
            *bits.get_mut(word)? |= 1 << (number % 64);
        }
    }
    Some(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_become_bits() {
        assert_eq!(bits("0-3,7"), Some(vec![0x8f]));
        assert_eq!(bits("64, 1"), Some(vec![2, 1]));
        assert_eq!(bits(""), Some(vec![]));
        for wrong in ["3-1", "x", "1-", "8192", "0-99999999999"] {
            assert_eq!(bits(wrong), None, "{wrong}");
        }
    }
}
