//! Help texts.

const OVERVIEW: &str = "\
croft-oci - runs containers that are described by OCI bundles

Usage: croft-oci [GLOBAL OPTION]... COMMAND [OPTION]... [ARGUMENT]...

Commands:
  create      make a container, whose process waits for start
  start       let the process of a created container go
  run         create and start, and wait for the end
  exec        run another process in a container
  state       print the state of a container
  kill        send a signal to a container's first process, or to all
  delete      remove a container
  ps          list the processes of a container
  pause       stop all processes of a container
  resume      let them go on
  update      change the limits of a container
  list        list containers
  spec        write a config.json to begin with
  features    print what this runtime can do
  events      print statistics and out-of-memory events
  checkpoint  write a container's processes to a directory (needs CRIU)
  restore     make a container of such a directory

Global options:
  --root DIR             where state is kept (/run/croft-oci, or
                         $XDG_RUNTIME_DIR/croft-oci without privilege)
  --log FILE             write messages there too
  --log-format FORMAT    text or json
  --debug                say more
  --rootless true|false|auto
                         accepted; who may do what is asked of the kernel
  --criu PATH            CRIU's program
  --version, --help

croft-oci COMMAND --help lists a command's options.
";

const CREATE: &str = "\
  -b, --bundle DIR        the bundle (the current directory)
  --console-socket PATH   a socket that gets the terminal's master
  --pid-file FILE         write the process id there
  --no-pivot              do without pivot_root, for a root on a ramdisk
  --no-new-keyring        keep the caller's session keyring
  --preserve-fds N        the process keeps N descriptors from 3 on
";

/// The help of the program.
pub fn overview() -> String {
    OVERVIEW.to_owned()
}

/// The help of a command; `None` if there is no such command.
pub fn for_command(command: &str) -> Option<String> {
    let (words, common, own) = match command {
        "create" => ("[OPTION]... ID", CREATE, ""),
        "start" | "state" | "pause" | "resume" => ("ID", "", ""),
        "run" => (
            "[OPTION]... ID",
            CREATE,
            "  -d, --detach            do not wait for the end
  --keep                  do not delete the container at its end
",
        ),
        "exec" => (
            "[OPTION]... ID COMMAND [ARGUMENT]...",
            "",
            "  -p, --process FILE      an OCI process, instead of a command and options
  -t, --tty               with a terminal
  --cwd DIR               working directory
  -e, --env NAME=VALUE    an environment variable
  -u, --user UID[:GID]    user
  -g, --additional-gids GID
  -c, --cap CAPABILITY    one more capability
  --apparmor PROFILE      AppArmor's profile
  --process-label LABEL   SELinux's label
  --no-new-privs          no privileges by set-user-id programs
  -d, --detach            do not wait for the end
  --ignore-paused         even if the container is paused
  --console-socket PATH   a socket that gets the terminal's master
  --pid-file FILE         write the process id there
  --preserve-fds N        the process keeps N descriptors from 3 on
  --cgroup PATH           a control group below the container's
",
        ),
        "kill" => (
            "[OPTION]... ID [SIGNAL]",
            "",
            "  -a, --all               to all processes\n",
        ),
        "delete" => (
            "[OPTION]... ID",
            "",
            "  -f, --force             kill it first\n",
        ),
        "ps" => (
            "[OPTION]... ID [WORD FOR ps]...",
            "",
            "  -f, --format FORMAT     table or json\n",
        ),
        "update" => (
            "[OPTION]... ID",
            "",
            "  -r, --resources FILE    OCI resources; - for standard input
  --blkio-weight WEIGHT   10 to 1000
  --cpu-period MICROSECONDS, --cpu-quota MICROSECONDS, --cpu-burst MICROSECONDS
  --cpu-share SHARES, --cpu-idle 0|1
  --cpu-rt-period MICROSECONDS, --cpu-rt-runtime MICROSECONDS
  --cpuset-cpus LIST, --cpuset-mems LIST
  --memory BYTES, --memory-reservation BYTES, --memory-swap BYTES
  --pids-limit COUNT
",
        ),
        "list" => (
            "[OPTION]...",
            "",
            "  -f, --format FORMAT     table or json
  -q, --quiet             names alone
",
        ),
        "spec" => (
            "[OPTION]...",
            "",
            "  -b, --bundle DIR        where to write (the current directory)
  --rootless              for a user without privilege
",
        ),
        "features" => ("", "", ""),
        "events" => (
            "[OPTION]... ID",
            "",
            "  --interval TIME         between statistics (5s)
  --stats                 print them once
",
        ),
        "checkpoint" => (
            "[OPTION]... ID",
            "",
            "  --image-path DIR        where to write (checkpoint)
  --work-path DIR         for CRIU's logs
  --leave-running         let the container go on
  --tcp-established, --ext-unix-sk, --shell-job, --file-locks, --link-remap
                          as CRIU's options of these names
  --tcp-skip-in-flight    as CRIU's --skip-in-flight
  --manage-cgroups-mode MODE
                          as CRIU's --manage-cgroups (ignore)
",
        ),
        "restore" => (
            "[OPTION]... ID",
            CREATE,
            "  -d, --detach            do not wait for the end
  --keep                  do not delete the container at its end
  --image-path DIR        what checkpoint wrote (checkpoint)
  --work-path DIR         for CRIU's logs
  --tcp-established, --ext-unix-sk, --shell-job, --file-locks, --link-remap
                          as CRIU's options of these names
  --manage-cgroups-mode MODE
                          as CRIU's --manage-cgroups (ignore)
",
        ),
        _ => return None,
    };
    let options = if common.is_empty() && own.is_empty() {
        ""
    } else {
        "\nOptions:\n"
    };
    Some(format!(
        "Usage: croft-oci [GLOBAL OPTION]... {command} {words}\n{options}{common}{own}"
    ))
}
