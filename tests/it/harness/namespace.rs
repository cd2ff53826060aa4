//! A second host: a network namespace joined to ours by a pair of virtual Ethernet interfaces, which can vanish.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A namespace; deleted, with its interfaces, when dropped.
pub(crate) struct Namespace {
    name: String,
    /// Our end of the link.
    host: String,
    near: Ipv4Addr,
    far: Ipv4Addr,
}

/// Whether this process may make namespaces at all.
pub(crate) fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"))
}

impl Namespace {
    /// A new namespace with one address on each side of the link.
    pub(crate) fn create() -> Self {
        let number = fastrand::u16(..);
        let [high, low] = number.to_be_bytes();
        // 10.201.x.y/31 would do, but some kernels want a broadcast address: four addresses for each pair.
        let base = low & 0b1111_1100;
        let near = Ipv4Addr::new(10, 128 + (high & 0x3f), low, base + 1);
        let far = Ipv4Addr::new(10, 128 + (high & 0x3f), low, base + 2);
        let (host, guest) = (format!("rbh{number:04x}"), format!("rbg{number:04x}"));
        let namespace = Self { name: format!("rb-it-{number:04x}"), host: host.clone(), near, far };
        let name = namespace.name.as_str();
        run("ip", &["netns", "add", name]);
        run("ip", &["link", "add", &host, "type", "veth", "peer", "name", &guest, "netns", name]);
        run("ip", &["addr", "add", &format!("{near}/30"), "dev", &host]);
        run("ip", &["link", "set", &host, "up"]);
        run("ip", &["-n", name, "addr", "add", &format!("{far}/30"), "dev", &guest]);
        run("ip", &["-n", name, "link", "set", &guest, "up"]);
        run("ip", &["-n", name, "link", "set", "lo", "up"]);
        namespace
    }

    /// Our own address on the link: what the other host connects to.
    pub(crate) fn near_address(&self) -> IpAddr {
        IpAddr::V4(self.near)
    }

    /// The other host's address.
    pub(crate) fn far_address(&self) -> IpAddr {
        IpAddr::V4(self.far)
    }

    /// A second address of ours on the link, to be taken before a server binds it.
    pub(crate) fn second_near_address(&self) -> IpAddr {
        let [_, second, third, last] = self.near.octets();
        let address = Ipv4Addr::new(10, second | 0xc0, third, last);
        run("ip", &["addr", "add", &format!("{address}/32"), "dev", &self.host]);
        let route =
            ["-n", &self.name, "route", "add", &format!("{address}/32"), "via", &self.near.to_string()];
        run("ip", &route);
        IpAddr::V4(address)
    }

    /// What `name` means inside from now on. The first time before the programs that are to see it start: they are given
    /// this file for /etc/hosts.
    pub(crate) fn resolves(&self, name: &str, address: IpAddr) {
        std::fs::create_dir_all(self.files()).unwrap();
        std::fs::write(self.files().join("hosts"), format!("127.0.0.1 localhost\n{address} {name}\n"))
            .unwrap();
    }

    /// See ip-netns(8): the files of a namespace that take the place of those in /etc.
    fn files(&self) -> PathBuf {
        Path::new("/etc/netns").join(&self.name)
    }

    /// The words before a program that make it run inside.
    pub(crate) fn wrapper(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.name].map(str::to_owned).to_vec()
    }

    /// A command that runs inside; the caller adds the program.
    pub(crate) fn command(&self) -> Command {
        let wrapper = self.wrapper();
        let mut command = Command::new(&wrapper[0]);
        command.args(&wrapper[1..]);
        command
    }

    /// From now on nothing passes in either direction and nobody is told: the host is gone.
    pub(crate) fn vanish(&self) {
        self.filter("-I");
    }

    /// What is sent again arrives again.
    pub(crate) fn come_back(&self) {
        self.filter("-D");
    }

    fn filter(&self, how: &str) {
        for chain in ["INPUT", "OUTPUT"] {
            let status = self.command().args(["iptables", how, chain, "-j", "DROP"]).status().unwrap();
            assert!(status.success(), "iptables in {}", self.name);
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Connections that nobody answers keep a namespace alive for a while, and with it our end of the link.
        for words in [["netns", "del", &self.name], ["link", "del", &self.host]] {
            let _ = Command::new("ip").args(words).stderr(Stdio::null()).status();
        }
        let _ = std::fs::remove_dir_all(self.files());
    }
}

#[track_caller]
fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {}", arguments.join(" "));
}
