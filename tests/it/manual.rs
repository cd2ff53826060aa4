//! `redbouncer man` and `redbouncer completions`: by the programs that read them.

use std::process::Command;

use crate::harness::Proxy;

fn printed(arguments: &[&str]) -> String {
    let (exit, text) = Proxy::run_to_end(arguments, &[]);
    assert_eq!((exit.code, exit.stderr.as_str()), (Some(0), ""), "{arguments:?}");
    text
}

#[test]
fn every_subcommand_has_a_manual_page() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(printed(&["man", "--directory", directory.path().to_str().unwrap()]), "");
    let page = |name: &str| std::fs::read_to_string(directory.path().join(format!("{name}.1"))).unwrap();
    assert_eq!(page("redbouncer"), printed(&["man"]));
    assert_eq!(page("redbouncer-check"), printed(&["man", "check"]));
    let help = printed(&["--help"]);
    let commands = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names = commands.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let mut count = 0;
    for name in names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help") {
        assert!(page(&format!("redbouncer-{name}")).contains(".SH OPTIONS"), "{name}");
        // roff takes a bare hyphen for one where a line may be broken.
        let escaped = name.replace('-', "\\-");
        assert!(page("redbouncer").contains(&format!("redbouncer\\-{escaped}(1)")), "{name}");
        count += 1;
    }
    assert!(count >= 8, "{help}");
    let (exit, _) = Proxy::run_to_end(&["man", "nothing"], &[]);
    assert_eq!(exit.code, Some(64), "{exit:#?}");
}

#[test]
fn groff_reads_the_manual_page_without_a_warning() {
    let directory = tempfile::tempdir().unwrap();
    printed(&["man", "--directory", directory.path().to_str().unwrap()]);
    let page = directory.path().join("redbouncer.1");
    let arguments = ["-man", "-Tascii", "-P-cbou", "-ww", page.to_str().unwrap()];
    let Ok(output) = Command::new("groff").args(arguments).output() else {
        return eprintln!("NOT TESTED: there is no groff");
    };
    let (text, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.is_empty(), "{said}");
    for heading in ["SYNOPSIS", "OPTIONS", "EXIT STATUS", "SIGNALS", "ENVIRONMENT", "FILES"] {
        assert!(text.contains(heading), "{heading}: {text}");
    }
}

#[test]
fn bash_completes_subcommands_and_flags() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("redbouncer");
    std::fs::write(&file, printed(&["completions", "bash"])).unwrap();
    let complete = |words: &[&str]| {
        let script = "source \"$0\"; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); \
                      _redbouncer redbouncer \"${COMP_WORDS[$COMP_CWORD]}\" \"${COMP_WORDS[$COMP_CWORD - 1]}\"; \
                      echo \"${COMPREPLY[*]}\"";
        let output = Command::new("bash").args(["-c", script]).arg(&file).args(words).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(complete(&["redbouncer", "clean"]), "cleanup");
    assert_eq!(complete(&["redbouncer", "run", "--max-"]), "--max-connections");
    assert_eq!(complete(&["redbouncer", "convert", "--from", "twem"]), "twemproxy");
}

#[test]
fn other_shells_have_completions_too() {
    for (shell, sign) in [
        ("zsh", "#compdef redbouncer"),
        ("fish", "complete -c redbouncer"),
        ("elvish", "edit:completion"),
        ("powershell", "Register-ArgumentCompleter"),
    ] {
        assert!(printed(&["completions", shell]).contains(sign), "{shell}");
    }
}
