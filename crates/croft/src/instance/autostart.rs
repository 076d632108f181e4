//! `croft autostart`.

use croft_host::InstanceName;

use super::power::start_one;
use super::{each, finish, open};
use crate::args::instance::AutostartOptions;
use crate::exit::Exit;
use crate::print;

/// A unit that starts the instances of the user that it runs as, and stops
/// them in order when the host goes down. It may make control groups, for the
/// limits of its instances.
fn unit(croft: &str) -> String {
    format!(
        "[Unit]
Description=Croft instances
After=network-online.target local-fs.target
Wants=network-online.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={croft} autostart
ExecStop={croft} stop --all --timeout 60
TimeoutStopSec=120
Delegate=yes

[Install]
WantedBy=multi-user.target
"
    )
}

/// Starts all instances that are marked.
pub fn autostart(options: &AutostartOptions) -> Exit {
    if options.unit {
        let croft = std::env::current_exe();
        let croft = croft.map_or_else(|_| "croft".to_owned(), |path| path.display().to_string());
        return print(unit(&croft).as_bytes());
    }
    let marked = open().and_then(|instances| {
        let names = instances.names()?.into_iter();
        // What cannot be read is not marked.
        let marked = names.filter(|name| {
            let marked = instances.config(name).is_ok_and(|config| config.autostart);
            let live = || {
                instances
                    .status(name)
                    .is_ok_and(|status| status.phase.is_live())
            };
            marked && !live()
        });
        Ok(marked.collect::<Vec<InstanceName>>())
    });
    match marked {
        Ok(names) => match each(&names, start_one) {
            Exit::PowerOff => Exit::PowerOff,
            _ => Exit::Failed,
        },
        Err(fault) => finish(Err(fault)),
    }
}
