//! Memory that a stock kernel does not need goes back to the host.

use croft_tests::modules::{load, shell};
use croft_tests::processes::resident;
use croft_tests::{PATIENCE, Stage, eventually};

const MIB: u64 = 1 << 20;

#[test]
fn freed_memory_goes_back() {
    const MODULES: [&str; 1] = ["virtio_balloon"];
    let stage = Stage::new();
    let mut command = shell(&stage, &MODULES);
    command.args(["--memory", "1G"]);
    let mut machine = stage.start(command);
    load(&mut machine, &MODULES);
    let process = stage.wait_for("croft-vmm");
    machine.type_in("mount -t tmpfs -o size=700m none tmp; dd if=/dev/zero of=tmp/big bs=1M count=512 2>/dev/null; echo filled-$((40 + 2))\n");
    machine.expect("filled-42");
    let full = resident(process);
    assert!(full > 512 * MIB, "{} MiB", full / MIB);
    machine.type_in("rm tmp/big; echo freed-$((40 + 2))\n");
    machine.expect("freed-42");
    eventually(PATIENCE, "400 MiB to go back", || {
        resident(process) + 400 * MIB < full
    });
    // What went is there again when it is needed, and what stayed is whole.
    machine.type_in("dd if=/dev/zero of=tmp/big bs=1M count=300 2>/dev/null; cmp -n 314572800 tmp/big /dev/zero && echo same-$((40 + 2))\n");
    machine.expect("same-42");
    machine.type_in("poweroff -f\n");
    let ended = machine.wait();
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    for bad in ["BUG", "WARNING: CPU", "virtio_balloon virtio"] {
        assert!(!ended.stdout.contains(bad), "{ended:#?}");
    }
}
