//! CLIENT KILL and CLIENT LIST filters (`clientKillCommand`, `clientListCommand` in redis `networking.c`).
//!
//! A filter is judged here, against parsed rows, and carried out by id: a forwarded `KILL TYPE normal` would kill every
//! lane of ours.

use super::Listed;
use crate::resp::Request;

/// Which clients a CLIENT KILL means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The old form, by address: exactly one, answered by +OK.
    pub old_form: bool,
    /// Only this id.
    pub id: Option<u64>,
    /// Only this peer address.
    pub addr: Option<String>,
    /// Only this local address.
    pub laddr: Option<String>,
    /// Only clients of this type.
    pub kind: Option<String>,
    /// Only clients of this user.
    pub user: Option<String>,
    /// Not the asking client itself.
    pub skip_me: bool,
    /// Only clients connected at least this many seconds.
    pub max_age: Option<u64>,
}

impl Filter {
    /// Reads the arguments of CLIENT KILL.
    ///
    /// # Errors
    /// The server's own words.
    pub fn parse(request: &Request<'_>) -> Result<Self, String> {
        let mut filter = Self {
            old_form: false,
            id: None,
            addr: None,
            laddr: None,
            kind: None,
            user: None,
            skip_me: true,
            max_age: None,
        };
        let args: Vec<_> =
            request.args().skip(2).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
        if let [addr] = args.as_slice() {
            return Ok(Self { old_form: true, addr: Some(addr.clone()), skip_me: false, ..filter });
        }
        let syntax = || "ERR syntax error".to_owned();
        if args.len() % 2 != 0 {
            return Err(syntax());
        }
        for pair in args.chunks(2) {
            let [option, value] = pair else { return Err(syntax()) };
            match option.to_ascii_lowercase().as_str() {
                "id" => {
                    let id = value.parse().ok().filter(|id| *id > 0);
                    filter.id = Some(id.ok_or("ERR client-id should be greater than 0")?);
                }
                "addr" => filter.addr = Some(value.clone()),
                "laddr" => filter.laddr = Some(value.clone()),
                "user" => filter.user = Some(value.clone()),
                "type" => {
                    let kind = value.to_ascii_lowercase();
                    if !["normal", "slave", "replica", "pubsub", "master"].contains(&kind.as_str()) {
                        return Err(format!("ERR Unknown client type '{value}'"));
                    }
                    filter.kind = Some(kind);
                }
                "skipme" => {
                    filter.skip_me = match value.to_ascii_lowercase().as_str() {
                        "yes" => true,
                        "no" => false,
                        _ => return Err(syntax()),
                    };
                }
                "maxage" => filter.max_age = Some(value.parse().map_err(|_| syntax())?),
                _ => return Err(syntax()),
            }
        }
        Ok(filter)
    }

    /// Whether `row` is meant; `me` is the asking client's id.
    #[must_use]
    pub fn matches(&self, row: &Listed, me: u64) -> bool {
        let same =
            |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        self.id.is_none_or(|id| id == row.id)
            && same(&self.addr, &row.addr)
            && same(&self.laddr, &row.laddr)
            && same(&self.user, &row.user)
            && self
                .kind
                .as_deref()
                .is_none_or(|kind| kind == row.kind() || (kind == "slave" && row.kind() == "replica"))
            && self.max_age.is_none_or(|age| row.age.as_secs() >= age)
            && !(self.skip_me && row.id == me)
    }
}
