//! Terminals.

use serde_json::json;

use crate::stage::stage;

#[test]
fn a_terminal_is_the_container_s_own() {
    let Some(mut stage) = stage() else { return };
    stage.spec["process"]["terminal"] = json!(true);
    stage.spec["process"]["consoleSize"] = json!({ "height": 31, "width": 77 });
    for own in [false, true] {
        if own {
            stage.own_ids();
        }
        let said = stage.ask(&[
            "tty",
            "size",
            "stat=/dev/console",
            "list=/dev/pts",
            "exit=3",
        ]);
        assert_eq!(said.code, Some(3), "{said:?}");
        assert_eq!(said.to("tty"), "/dev/pts/0", "{said:?}");
        assert_eq!(said.to("size"), "31x77");
        // A character device, 136:0.
        assert!(said.to("stat=/dev/console").ends_with(" 34816"), "{said:?}");
        assert_eq!(said.to("list=/dev/pts"), "0 ptmx");
    }
}

#[test]
fn without_a_devpts_there_is_none() {
    let Some(mut stage) = stage() else { return };
    stage.spec["process"]["terminal"] = json!(true);
    let mounts = stage.spec["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| mount["type"] != "devpts");
    let said = stage.ask(&["tty"]);
    assert_eq!(said.code, Some(125));
    assert!(said.errors.contains("/dev/pts/ptmx"), "{said:?}");
}
