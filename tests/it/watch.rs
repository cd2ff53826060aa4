//! `redbouncer status --watch`, in a terminal: tmux draws what a person would see, and presses the keys.

use std::process::{Command, Output};
use std::time::Duration;

use crate::harness::{Client, Proxy, Stage, until};

/// A view has one second between two looks, and the machine may be busy.
const SEEN: Duration = Duration::from_secs(20);

/// A tmux server of its own, with one window in which a program runs. It ends with this value.
struct Terminal {
    socket: String,
}

impl Terminal {
    fn run(program: &str) -> Self {
        let this = Self { socket: format!("rb-{}-{:08x}", std::process::id(), fastrand::u32(..)) };
        // The shell stays when the program has ended, so that what it has left on the screen is seen.
        let shell = format!("{program}; echo ended with $?; exec sleep 60");
        let started =
            this.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "150", "-y", "30", "sh", "-c", &shell]);
        assert!(started.status.success(), "tmux (deploy/install.sh terminal): {started:?}");
        this
    }

    fn tmux(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("tmux");
        command.args(["-L", &self.socket]).args(arguments).env("TERM", "xterm-256color").env_remove("TMUX");
        command.output().expect("tmux is there: deploy/install.sh terminal")
    }

    /// What stands on the screen.
    fn screen(&self) -> String {
        String::from_utf8_lossy(&self.tmux(&["capture-pane", "-p"]).stdout).into_owned()
    }

    fn press(&self, key: &str) {
        assert!(self.tmux(&["send-keys", key]).status.success(), "{key}");
    }

    /// Waits until the screen is as `is` says; panics with what stands there.
    #[track_caller]
    fn shows(&self, what: &str, is: impl Fn(&str) -> bool) {
        let mut screen = String::new();
        let start = std::time::Instant::now();
        while start.elapsed() < SEEN {
            screen = self.screen();
            if is(&screen) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("not within {SEEN:?}: {what}\n{screen}");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.tmux(&["kill-server"]);
    }
}

fn watched(stage: &Stage) -> Terminal {
    let program = env!("CARGO_BIN_EXE_redbouncer");
    Terminal::run(&format!("{program} status --watch --admin {}", stage.proxy().admin()))
}

/// The names in the table, from top to bottom.
fn names(screen: &str) -> Vec<String> {
    let rows = screen.lines().skip_while(|line| !line.starts_with("client ")).skip(1);
    let rows = rows.take_while(|line| line.starts_with(|sign: char| sign.is_ascii_digit()));
    rows.filter_map(|line| line.split_whitespace().nth(1).map(str::to_owned)).collect()
}

fn named(stage: &Stage, name: &str) -> Client {
    let mut client = stage.connect();
    client.call(&format!("CLIENT SETNAME {name}"));
    client
}

#[test]
fn clients_are_sorted_filtered_and_killed_by_keys() {
    let stage = Stage::proxied();
    let (mut web, mut api, mut job) = (named(&stage, "web"), named(&stage, "api"), named(&stage, "job"));
    assert_eq!(job.call("WATCH w").text(), "OK");
    let terminal = watched(&stage);
    // Who holds a lease stands first; the rest by id.
    terminal.shows("the holder first", |screen| names(screen) == ["job", "web", "api"]);
    terminal.shows("the verdict and the pool", |screen| {
        screen.starts_with("OK: 3 clients over ")
            && screen.contains("leases 1 of 3")
            && screen.contains("q quit")
    });
    // By name: four columns to the left.
    (0..4).for_each(|_| terminal.press("Left"));
    terminal.shows("by name", |screen| names(screen) == ["api", "job", "web"] && screen.contains("name v"));
    terminal.press("r");
    terminal.shows("reversed", |screen| names(screen) == ["web", "job", "api"]);
    // A filter.
    terminal.press("/");
    terminal.press("api");
    terminal.shows("the filter as it is typed", |screen| {
        names(screen) == ["api"] && screen.contains("filter: api_")
    });
    terminal.press("Enter");
    terminal.press("k");
    terminal.shows("the question", |screen| screen.contains("name api? y closes it"));
    terminal.press("n");
    terminal.shows("it was not meant", |screen| screen.contains("nothing was closed"));
    assert_eq!(api.call("PING").text(), "PONG");
    terminal.press("k");
    terminal.shows("the question again", |screen| screen.contains("name api? y closes it"));
    terminal.press("y");
    api.expect_end(SEEN);
    terminal.press("Escape");
    terminal
        .shows("it is gone", |screen| names(screen) == ["web", "job"] && screen.contains("closed client "));
    for client in [&mut web, &mut job] {
        assert_eq!(client.call("PING").text(), "PONG");
    }
    // Selected by the arrow: the holder, whose connection is given back.
    terminal.press("Down");
    terminal.press("k");
    terminal.shows("the holder is meant", |screen| screen.contains("name job? y closes it"));
    terminal.press("y");
    job.expect_end(SEEN);
    until("the server has its connection back", SEEN, || {
        stage.server.rows().iter().all(|row| !row.get("name").ends_with(":leased"))
    });
    terminal.press("q");
    terminal.shows("the terminal as it was", |screen| screen.starts_with("ended with 0"));
}

#[test]
fn a_proxy_that_goes_away_is_said_and_the_view_stays() {
    let stage = Stage::proxied();
    let terminal = watched(&stage);
    terminal.shows("the proxy", |screen| screen.starts_with("OK: 0 clients over "));
    let (_server, proxy) = stage.into_parts();
    proxy.kill();
    terminal.shows("that it cannot be asked", |screen| screen.contains("cannot connect to http://"));
    terminal.press("C-c");
    terminal.shows("the terminal as it was", |screen| screen.starts_with("ended with 0"));
}

#[test]
fn without_a_terminal_the_view_says_so() {
    let stage = Stage::proxied();
    let admin = stage.proxy().admin().to_string();
    let (exit, stdout) = Proxy::run_to_end(&["status", "--watch", "--admin", &admin], &[]);
    assert_eq!((exit.code, stdout.as_str()), (Some(1), ""), "{exit:?}");
    assert!(exit.stderr.contains("--watch needs a terminal"), "{exit:?}");
}
