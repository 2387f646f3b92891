//! The Node addon of polylock: converts, calls the engine, converts back. Private: the public API is TypeScript
//! (`ts/`), which is the only caller and checks the types of what it passes.
//!
//! Every call returns a `Reply`; none throws for a failure of a lock.

mod calls;
mod environment;
mod reply;
mod uv;
