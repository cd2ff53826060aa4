//! What the tasks of one thread run on.

use tokio::runtime::{Builder, LocalOptions, LocalRuntime};

pub(super) fn runtime() -> std::io::Result<LocalRuntime> {
    Builder::new_current_thread().enable_all().build_local(LocalOptions::default())
}
