//! What runs the engine: its runtime and threads, the timer, and the ways in which a caller's thread or
//! event loop can drive a connection itself.

pub(crate) mod driver;
pub(crate) mod ear;
pub(crate) mod process;
pub(crate) mod reactor;
pub(crate) mod runtime;
pub(crate) mod timer;
pub(crate) mod watched;
