//! A guest's NIC: to the host's sockets without rights, and on a bridge.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use croft_tests::PATIENCE;

use crate::case::{Case, Contestant, Figure, Layout, Place, Run, Target};
use crate::files::Files;
use crate::systems::{Net, System};

/// The namespace's bridge and its address, as `scripts/bench/namespace` makes
/// them.
const BRIDGE: &str = "bench";
const HOST: &str = "10.98.0.1";

/// Port of the loopback interface that leads to the guest's web server.
const PORT: u16 = 8098;

/// QEMU, among the contestants.
const QEMU: usize = 1;

/// How many pages are asked for, one after the other.
const PAGES: u32 = 1000;

/// Longest time of what the guest does by itself.
const LONGEST: Duration = Duration::from_secs(120);

/// How a contestant is reached.
#[derive(Clone, Copy)]
struct Way {
    net: Net,
    /// The guest's address and prefix, and its router.
    guest: &'static str,
    /// The guest's web server, from the host.
    web: SocketAddr,
}

/// What a case compares.
struct Compared {
    key: &'static str,
    title: &'static str,
    systems: [System; 2],
    ways: [Way; 2],
    /// Of QEMU's time, for each figure.
    shares: [f64; 4],
    place: Place,
}

/// Both kinds of networks, and a bridge's on KVM.
pub fn cases(files: &Files) -> Vec<Case<'_>> {
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    let user = |guest| Way {
        net: Net::User(PORT),
        guest,
        web: local,
    };
    let bridge = |net| Way {
        net,
        guest: "10.98.0.2/24,10.98.0.1",
        web: SocketAddr::from((Ipv4Addr::new(10, 98, 0, 2), 80)),
    };
    let emulated = || {
        [
            System::Software("software-fast", files.croft.clone()),
            System::Tcg(""),
        ]
    };
    let compared = [
        Compared {
            key: "net-user",
            title: "A network without rights: passt, and QEMU's own (slirp)",
            systems: emulated(),
            ways: [
                user("10.199.15.15/24,10.199.15.1"),
                user("10.0.2.15/24,10.0.2.2"),
            ],
            shares: [0.5, 0.5, 1.0, 0.5],
            place: Place::Namespace,
        },
        Compared {
            key: "net-bridge",
            title: "A NIC on a bridge",
            systems: emulated(),
            ways: [bridge(Net::Bridge(BRIDGE)); 2],
            shares: [0.5, 0.5, 1.0, 0.5],
            place: Place::Namespace,
        },
        Compared {
            key: "net-kvm",
            title: "A NIC on a bridge, on KVM",
            systems: [System::Kvm, System::QemuKvm("pc")],
            ways: [bridge(Net::Open(BRIDGE)); 2],
            // The time for what is sent at 0.95 of the rate.
            shares: [1.0 / 0.95; 4],
            place: Place::Kvm,
        },
    ];
    compared.map(|compared| case(files, compared)).into()
}

fn case(files: &Files, compared: Compared) -> Case<'_> {
    let Compared {
        key,
        title,
        systems,
        ways,
        shares: [out, inward, ping, page],
        place,
    } = compared;
    let figure = |name: &str, unit, digits, share| Figure {
        name: name.to_owned(),
        unit,
        digits,
        target: Some(Target::Share(QEMU, share)),
    };
    Case {
        key,
        title: title.to_owned(),
        about: "Between a guest with one processor and its host, on a network of their own. \
                MiB: the time for one, of iperf3's TCP in four seconds, by the rate at which \
                it was received. Round trip: the mean of 200 pings. Page: one of nginx's in the \
                guest, 612 bytes, the mean of a thousand, each on a connection of its own, one \
                after the other.",
        figures: vec![
            figure("MiB, guest to host", "µs", 1, out),
            figure("MiB, host to guest", "µs", 1, inward),
            figure("round trip", "µs", 1, ping),
            figure("page", "µs", 1, page),
        ],
        contestants: systems
            .into_iter()
            .zip(ways)
            .map(|(system, way)| Contestant {
                name: system.name(),
                rival: system.is_rival(),
                run: Box::new(move || run(&system, files, way)),
            })
            .collect(),
        layout: Layout::Figures,
        place,
    }
}

fn run(system: &System, files: &Files, way: Way) -> Run {
    let boot = files.net(way.net, &format!("{},{HOST}", way.guest))?;
    let mut guest = system.start(&boot)?;
    guest.time_to("bench-begin", PATIENCE)?;
    guest.time_to("bench-end", LONGEST)?;
    let text = guest.text();
    let said = |name: &str| {
        let prefix = format!("bench {name} ");
        let line = text
            .lines()
            .find_map(|line| line.trim_end().strip_prefix(&prefix));
        match line.map(str::parse::<f64>) {
            Some(Ok(value)) if value > 0.0 => Ok(value),
            _ => Err(format!("no figure of {name} in:\n{text}")),
        }
    };
    let mebibyte = |rate: f64| f64::from(8 << 20) / rate * 1e6;
    Ok(vec![
        mebibyte(said("out")?),
        mebibyte(said("in")?),
        said("ping")? * 1e3,
        pages(way.web).map_err(|error| format!("http://{}: {error}", way.web))?,
    ])
}

/// Microseconds of a page.
fn pages(server: SocketAddr) -> std::io::Result<f64> {
    let page = || {
        let mut stream = TcpStream::connect(server)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.0\r\nHost: guest\r\n\r\n")?;
        let mut text = Vec::new();
        stream.read_to_end(&mut text)?;
        if text.starts_with(b"HTTP/1.1 200") && text.ends_with(b"</html>\n") {
            Ok(())
        } else {
            Err(std::io::Error::other("not the page"))
        }
    };
    // nginx may not listen yet.
    let start = Instant::now();
    while page().is_err() && start.elapsed() < LONGEST {
        std::thread::sleep(Duration::from_millis(50));
    }
    let start = Instant::now();
    for _ in 0..PAGES {
        page()?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(PAGES))
}
