//! What can be set about the operator's HTTP listener.

/// Where `/metrics`, `/live`, `/ready` and `/status` are served (`[admin]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminOptions {
    /// `host:port`; port 0 lets the system choose; `None` serves nothing.
    pub address: Option<String>,
    /// Public names under which the port may be asked, beside addresses and private names.
    pub hosts: Vec<String>,
    /// `/ready` answers 503 until the server has accepted a first login.
    pub ready_needs_login: bool,
    /// Users who may act on the proxy by PROXY; none: clients on this host.
    pub users: Vec<String>,
}

impl Default for AdminOptions {
    fn default() -> Self {
        Self {
            address: Some("127.0.0.1:9380".to_owned()),
            hosts: Vec::new(),
            ready_needs_login: false,
            users: Vec::new(),
        }
    }
}
