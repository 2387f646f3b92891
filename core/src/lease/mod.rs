//! A held lock.

mod handle;
pub(crate) mod state;

pub(crate) use handle::Held;
pub use handle::Lease;
pub use state::LossReason;
