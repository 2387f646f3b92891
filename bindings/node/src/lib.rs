//! The Node addon of polylock: converts, calls the engine, converts back. Private: the public API is TypeScript
//! (`ts/`), which is the only caller and checks the types of what it passes.
//!
//! Every call returns a `Reply`; none throws for a failure of a lock.

// Its calls are for Node alone: a test build registers none, so there is nothing in it.
#![cfg(not(test))]

mod calls;
mod environment;
mod observe;
mod reply;
mod thread;
mod uv;

/// A fifth of the time of a lock went into the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
