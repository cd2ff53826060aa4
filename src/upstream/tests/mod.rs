//! What a dial promises, against real servers and against listeners that misbehave.

mod dial;
mod login;
mod tls;
