//! One blocking call, taken apart and put together again.
//!
//! A blocked client must not cost an upstream connection, so its call is tried without blocking (inside MULTI nothing
//! blocks) until an element comes or its own timeout has passed. For that the proxy has to know the keys that are
//! waited for, the timeout, the `$` of XREAD (which must mean "since the call arrived", not "since this try"), and how
//! to put an element back whose client has died. All of it is bytes in, bytes out.
//!
//! The grammar is that of redis `t_list.c`, `t_zset.c` and `t_stream.c`; timeouts as `timeout.c` reads them.

mod answer;
mod call;
mod give_back;
mod parse;
mod shape;
mod stream;
#[cfg(test)]
mod tests;
mod timeout;
mod waits;

pub use answer::{DEMOTED, is_nothing};
pub use call::{Call, Timeout};
pub use parse::parse;
pub(super) use parse::{blocks, options_end};
pub use stream::{last_generated_id, stream_position};
pub use waits::Waited;
