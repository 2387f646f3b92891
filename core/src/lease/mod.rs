//! A held lock.

mod handle;
pub(crate) mod state;

pub use handle::Lease;
pub(crate) use handle::{Grant, Held};
pub use state::LossReason;
