use std::time::{Duration, Instant};

use croft_api::container::{ContainerSpec, IdRange};
use croft_api::machine::{EngineChoice, MachineSpec, SoftwareSpec};
use croft_api::monitor::KeepPayload;
use croft_api::{Outcome, RestartPolicy};

use super::*;

fn instances(place: &Path) -> Instances {
    let directories = Directories::new(place, place.join("run"));
    directories.create().unwrap();
    Instances::new(directories)
}

fn name(text: &str) -> InstanceName {
    text.parse().unwrap()
}

fn config() -> Config {
    Config {
        version: CONFIG_VERSION,
        created: 1_700_000_000_000,
        kind: Kind::Machine(Box::new(Machine {
            machine: MachineSpec {
                name: "web".to_owned(),
                engine: EngineChoice::Auto,
                software: SoftwareSpec::default(),
                cpu: None,
                memory: 1 << 29,
                cpus: 1,
                append: String::new(),
                no_reboot: false,
                test_devices: false,
                ports: Vec::new(),
                vsock: Some(3),
            },
            boot: Boot::Kernel {
                kernel: "/boot/vmlinuz".into(),
                initrd: None,
            },
            disks: vec![Disk {
                layers: vec![Layer {
                    path: "disk.img".into(),
                    format: None,
                }],
                index: None,
                options: Default::default(),
            }],
            shares: Vec::new(),
        })),
        nics: Vec::new(),
        image: None,
        restart: RestartPolicy::OnFailure,
        ephemeral: false,
        autostart: true,
        user: None,
    }
}

/// All that is in the instances' directory.
fn entries(instances: &Instances) -> Vec<String> {
    let entries = fs::read_dir(instances.directories().instances()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.collect()
}

#[test]
fn made_changed_and_deleted() {
    let place = tempfile::tempdir().unwrap();
    let all = instances(place.path());
    assert_eq!(all.names().unwrap(), []);
    let new = all.begin(&name("web")).unwrap();
    fs::write(new.directory().join("disk.img"), "disk").unwrap();
    assert_eq!(all.names().unwrap(), []);
    new.finish(&config()).unwrap();
    assert_eq!(all.names().unwrap(), [name("web")]);
    assert_eq!(entries(&all), ["web"]);
    assert_eq!(all.config(&name("web")).unwrap(), config());
    assert_eq!(all.status(&name("web")).unwrap().phase, Phase::Created);
    all.change(&name("web"), |config| config.autostart = false)
        .unwrap();
    assert!(!all.config(&name("web")).unwrap().autostart);
    let keep = config().keep_request(all.directories(), &name("web"));
    let disk = all.directories().instance(&name("web")).join("disk.img");
    let KeepPayload::Machine(run) = keep.payload else {
        panic!("it is a machine");
    };
    assert_eq!(run.disks[0].layers[0].path, disk);
    assert_eq!(run.kernel.unwrap(), "/boot/vmlinuz");
    all.delete(&name("web")).unwrap();
    assert!(entries(&all).is_empty());
    assert!(matches!(all.delete(&name("web")), Err(StoreError::None(_))));
}

#[test]
fn a_name_is_given_once() {
    let place = tempfile::tempdir().unwrap();
    let all = instances(place.path());
    let first = all.begin(&name("web")).unwrap();
    let directory = first.directory().to_owned();
    let second = all.begin(&name("web"));
    // Both are begun in one millisecond at worst: then the second is refused
    // already.
    first.finish(&config()).unwrap();
    if let Ok(second) = second {
        assert_ne!(second.directory(), directory);
        assert!(matches!(
            second.finish(&config()),
            Err(StoreError::Exists(_))
        ));
    }
    assert!(matches!(
        all.begin(&name("web")),
        Err(StoreError::Exists(_))
    ));
    assert_eq!(entries(&all), ["web"]);
}

#[test]
fn what_a_crash_leaves_is_cleaned_up() {
    let place = tempfile::tempdir().unwrap();
    let all = instances(place.path());
    let mine = all.begin(&name("mine")).unwrap();
    for left in [".new-a-1-2", ".gone-b-3-4"] {
        let path = all.directories().instances().join(left);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("disk.img"), "half").unwrap();
    }
    all.begin(&name("web")).unwrap().finish(&config()).unwrap();
    // What somebody still makes is not touched.
    mine.finish(&config()).unwrap();
    let mut left = entries(&all);
    left.sort();
    assert_eq!(left, ["mine", "web"]);
}

#[test]
fn many_are_made_at_once() {
    let place = tempfile::tempdir().unwrap();
    let all = instances(place.path());
    std::thread::scope(|scope| {
        for number in 0..4 {
            let all = &all;
            scope.spawn(move || {
                for turn in 0..200 {
                    let name = name(&format!("web-{number}-{turn}"));
                    let new = all.begin(&name).unwrap();
                    fs::write(new.directory().join("disk.img"), "disk").unwrap();
                    new.finish(&config()).unwrap();
                    all.delete(&name).unwrap();
                }
            });
        }
    });
    assert!(entries(&all).is_empty());
}

#[test]
fn what_runs_is_left_alone_and_a_dead_monitor_is_seen() {
    let place = tempfile::tempdir().unwrap();
    let all = instances(place.path());
    all.begin(&name("web")).unwrap().finish(&config()).unwrap();
    let directory = all.directories().instance(&name("web"));
    let lock = InstanceLock::take(&directory).unwrap();
    let status = Status {
        phase: Phase::Running,
        outcome: Some(Outcome::PowerOff),
        ..Status::created(1)
    };
    write_state(&directory, &status).unwrap();
    assert_eq!(all.status(&name("web")).unwrap(), status);
    assert!(matches!(
        all.delete(&name("web")),
        Err(StoreError::InUse(_))
    ));
    assert!(all.change(&name("web"), |_| ()).is_err());
    drop(lock);
    // A child that another test's thread forks has it, too, until it runs its
    // program.
    let deadline = Instant::now() + Duration::from_secs(120);
    while InstanceLock::is_held(&directory).unwrap() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    let orphan = all.status(&name("web")).unwrap();
    assert_eq!(orphan.phase, Phase::Stopped);
    assert_eq!(orphan.note.unwrap(), "its monitor died");
    // A power failure leaves nothing of it, or a part.
    for text in ["", "{"] {
        fs::write(directory.join("state.json"), text).unwrap();
        let lost = all.status(&name("web")).unwrap();
        assert_eq!(lost.phase, Phase::Stopped);
        assert!(lost.note.unwrap().contains("lost"));
    }
    fs::remove_file(directory.join("state.json")).unwrap();
    assert_eq!(all.status(&name("web")).unwrap().phase, Phase::Created);
}

#[test]
fn later_and_broken_configurations_are_refused() {
    let place = tempfile::tempdir().unwrap();
    let all = instances(place.path());
    let later = Config {
        version: CONFIG_VERSION + 1,
        ..config()
    };
    all.begin(&name("later")).unwrap().finish(&later).unwrap();
    let error = all.status(&name("later")).unwrap_err().to_string();
    assert!(error.contains("newer Croft"), "{error}");
    all.begin(&name("broken"))
        .unwrap()
        .finish(&config())
        .unwrap();
    let path = all.directories().instance(&name("broken"));
    fs::write(path.join("config.json"), "[").unwrap();
    assert!(all.config(&name("broken")).is_err());
    // It can still be deleted.
    all.delete(&name("broken")).unwrap();
}

fn container(ids: Option<IdRange>) -> Config {
    Config {
        kind: Kind::Container(Box::new(ContainerSpec {
            name: "box".to_owned(),
            command: vec!["true".to_owned()],
            ids,
            ..ContainerSpec::default()
        })),
        ..config()
    }
}

#[test]
fn either_kind_is_read_back_and_neither_or_both_are_refused() {
    let machine = serde_json::to_value(config()).unwrap();
    // As it always was in the file.
    assert_eq!(machine["machine"]["name"], "web");
    assert!(machine["boot"]["kernel"].is_object() && machine["disks"].is_array());
    assert!(machine.get("container").is_none());
    let mut without = machine.clone();
    for key in ["nics", "user"] {
        without.as_object_mut().unwrap().remove(key);
    }
    assert_eq!(serde_json::from_value::<Config>(without).unwrap(), config());
    let kept = serde_json::to_value(container(None)).unwrap();
    assert!(kept.get("machine").is_none());
    assert_eq!(
        serde_json::from_value::<Config>(kept.clone()).unwrap(),
        container(None)
    );
    let mut both = machine.clone();
    both["container"] = kept["container"].clone();
    assert!(serde_json::from_value::<Config>(both).is_err());
    let mut neither = kept.clone();
    neither.as_object_mut().unwrap().remove("container");
    assert!(serde_json::from_value::<Config>(neither).is_err());
}

#[test]
fn ids_are_nobody_elses() {
    let place = tempfile::tempdir().unwrap();
    let all = instances(place.path());
    let allocate = |text: &str| {
        let new = all.begin(&name(text)).unwrap();
        let range = new.allocate_ids().unwrap();
        (new, range)
    };
    let (first, a) = allocate("a");
    first.finish(&container(Some(a))).unwrap();
    // One that is being made has its own; dropped, it gives them back.
    let (second, b) = allocate("b");
    assert!(!b.overlaps(a));
    drop(second);
    assert_eq!(allocate("c").1, b);
    all.delete(&name("a")).unwrap();
    assert_eq!(allocate("d").1, a);
}
