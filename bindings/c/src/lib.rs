//! The C library: converts, calls the engine, converts back. What callers need to know is in
//! `include/polylock.h`, which is made from this crate's doc comments.
//!
//! `unsafe` is in three files alone: [`table`] (handles), [`pointer`] (what C hands in and gets out) and [`callback`] (what
//! C wants to be called).

#![deny(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::todo,
    clippy::undocumented_unsafe_blocks,
    clippy::unimplemented,
    clippy::unwrap_used
)]

mod abi;
mod boundary;
mod callback;
mod dispatcher;
mod object;
mod pointer;
mod table;
mod wait;

mod library;

mod log;

mod error;

mod connect;

mod options;

mod manager;

mod lease;

mod holder;

mod observe;

mod future;

mod queue;

mod fencing;
