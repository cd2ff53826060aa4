//! The redbouncer program. Everything it does is in the library, where it can be tested.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// Gives back what is freed, page by page and at once, as `.cargo/config.toml` has it compiled in: with glibc's allocator
/// what many short requests have held stays with the process, beside what long ones hold next
/// (`docs/decisions/0026-one-bound-for-the-memory-of-all-clients.md`).
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    redbouncer::cli::main()
}
