//! Options that are set outside of the command line: which value counts, and what is said of wrong ones.

mod program;

use std::path::Path;
use std::process::{Command, Output};

use program::stderr;
use serde_json::Value;

/// Runs the command with a configuration file of this text and some variables.
fn navicache(folder: &Path, file: &str, variables: &[(&str, &str)], args: &[&str]) -> Output {
    std::fs::create_dir_all(folder.join("navicache")).unwrap();
    std::fs::write(folder.join("navicache/config.toml"), file).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_navicache"));
    command.args(args).current_dir(folder).env("XDG_CONFIG_HOME", folder);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("NAVICACHE_")) {
        command.env_remove(name);
    }
    command.envs(variables.iter().copied()).output().unwrap()
}

const FILE: &str = "threads = 1
steps = 9
frames = 5
size = '32x32'

[generate]
cache = 'none'
steps = 7
quiet = true
resolution = '480p'
";

/// The request of a report.
fn request(folder: &Path, variables: &[(&str, &str)], args: &[&str]) -> Value {
    let args = [&["generate", "a red circle", "--report", "r.json", "-o", "v.safetensors"], args].concat();
    let file = FILE.replace("size = '32x32'\n", "");
    let file = format!("{file}[estimate]\nsteps = 3\n");
    let output = navicache(folder, &file, variables, &args);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(output.stderr.is_empty() || !variables.is_empty(), "quiet is set: {}", stderr(&output));
    serde_json::from_slice::<Value>(&std::fs::read(folder.join("r.json")).unwrap()).unwrap()["request"].clone()
}

#[test]
fn the_command_line_counts_before_variables_and_these_before_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    // --size on the command line: the file's --resolution, which cannot stand beside it, yields.
    let small = ["--size", "32x32"];
    let file = request(folder, &[], &small);
    assert_eq!((file["steps"].as_u64(), file["frames"].as_u64()), (Some(7), Some(5)), "its own table first");
    assert_eq!(request(folder, &[("NAVICACHE_STEPS", "6")], &small)["steps"], 6);
    assert_eq!(request(folder, &[("NAVICACHE_STEPS", "")], &small)["steps"], 7, "an empty variable sets nothing");
    assert_eq!(request(folder, &[("NAVICACHE_STEPS", "6")], &["--size", "32x32", "--steps", "4"])["steps"], 4);
    let sized = request(folder, &[("NAVICACHE_SIZE", "48x32")], &[]);
    assert_eq!((sized["width"].as_u64(), sized["height"].as_u64()), (Some(48), Some(32)));
}

#[test]
fn config_shows_which_value_and_from_where() {
    let folder = tempfile::tempdir().unwrap();
    let variables = [("NAVICACHE_STEPS", "6"), ("NAVICACHE_LORA", "a.safetensors")];
    let output = navicache(folder.path(), FILE, &variables, &["config", "generate", "--json"]);
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    let file = folder.path().join("navicache/config.toml");
    assert_eq!(shown["file"], file.to_str().unwrap());
    let generate = &shown["commands"]["generate"];
    let is = |option: &str, value: Value, from: Value| {
        assert_eq!(generate[option], serde_json::json!({"value": value, "from": from}), "{option}");
    };
    is("steps", "6".into(), "NAVICACHE_STEPS".into());
    is("lora", "a.safetensors".into(), "NAVICACHE_LORA".into());
    is("threads", "1".into(), format!("{}, line 1", file.display()).into());
    is("cache", "none".into(), format!("{}, line 7", file.display()).into());
    is("output", "out.mp4".into(), "default".into());
    is("seed", Value::Null, Value::Null);

    let text = String::from_utf8(navicache(folder.path(), FILE, &variables, &["config"]).stdout).unwrap();
    assert!(text.contains("NAVICACHE_STEPS") && !text.contains("out.mp4"), "only what is set: {text}");
    let wrong = navicache(folder.path(), "", &[], &["config", "generat"]);
    assert!(stderr(&wrong).contains("did you mean generate?"), "{}", stderr(&wrong));
    // Without a file.
    let none = navicache(folder.path(), FILE, &[("NAVICACHE_CONFIG", "")], &["config"]);
    assert!(String::from_utf8_lossy(&none.stdout).contains("configuration file: none"));
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let generate = ["generate", "a red circle", "--steps", "1", "--frames", "5", "--size", "32x32"];
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], i32, &'a str); // file, variables, exit code, words
    let cases: &[Case] = &[
        ("stpes = 3", &[], 2, "config.toml, line 1: stpes is no option of navicache; did you mean steps?"),
        ("[generate]\nfps = 'many'", &[], 2, "--fps is set by"),
        ("[generate]\nfps = 'many'", &[], 2, "config.toml, line 2"),
        ("[generate]\njson = 'maybe'", &[], 2, "line 2: --json: expected true or false, found \"maybe\""),
        ("", &[("NAVICACHE_FPS", "many")], 2, "--fps is set by NAVICACHE_FPS"),
        ("", &[("NAVICACHE_STPES", "3")], 0, "NAVICACHE_STPES is no variable of navicache, and does nothing; did you"),
        ("", &[("NAVICACHE_KERNELS", "avx9")], 2, "expected one that this machine has: plain"),
        ("", &[("NAVICACHE_KERNELS", "plain")], 0, ""),
        ("", &[("NAVICACHE_CONFIG", "no/such.toml")], 2, "no/such.toml is no file"),
        ("", &[("NAVICACHE_QUIET", "perhaps")], 2, "NAVICACHE_QUIET: --quiet: expected true or false"),
    ];
    for (file, variables, code, said) in cases {
        let output = navicache(folder.path(), file, variables, &generate);
        let text = stderr(&output);
        assert!(output.status.code() == Some(*code) && text.contains(said), "{file} {variables:?}: {text}");
    }
    // What only shows something works with a broken file too.
    for shows in [&["--help"][..], &["--version"], &["generate", "-h"], &["completions", "bash"]] {
        assert!(navicache(folder.path(), "stpes = 3", &[], shows).status.success(), "{shows:?}");
    }
}
