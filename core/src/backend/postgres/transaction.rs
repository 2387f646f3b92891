//! SQL for a transaction of your own: the lock, or the check of the fencing token, together with the data.
//!
//! This needs no connection of this library's: run the statements on yours, before what they are to protect.
//!
//! * [`LOCK`] and [`TRY_LOCK`] take the advisory lock of a name until the transaction ends. It is the lock of session
//!   mode (`?mode=session`): leases there and transactions exclude each other. There is no lease, no ttl and nothing to
//!   release.
//! * [`CLAIM`] checks the fencing token of a lease, of whichever backend, in the transaction that writes: if a later
//!   holder has been here, it fails, and with it the transaction.
//!
//! ```no_run
//! # async fn pay(client: &mut tokio_postgres::Client, lease: &polylock::Lease)
//! # -> Result<(), Box<dyn std::error::Error>> {
//! use polylock::postgres::{CLAIM, LOCK, lock_id};
//!
//! let transaction = client.transaction().await?;
//! transaction.execute(LOCK, &[&lock_id("account:1")]).await?;
//! transaction.execute(CLAIM, &[&"invoice:42", &i64::try_from(lease.fencing_token())?]).await?;
//! transaction.execute("UPDATE invoice SET paid = true WHERE id = 42", &[]).await?;
//! transaction.commit().await?;
//! # Ok(()) }
//! ```

use super::session::id::id_of_name;

/// Waits for the advisory lock of a name, and holds it until the transaction ends. $1 is its [`lock_id`].
///
/// The wait keeps the snapshot of the transaction; `lock_timeout` bounds it.
pub const LOCK: &str = "SELECT pg_advisory_xact_lock($1::bigint)";

/// As [`LOCK`], but does not wait: one row that says whether it was free.
pub const TRY_LOCK: &str = "SELECT pg_try_advisory_xact_lock($1::bigint)";

/// Claims a resource ($1, text) for the holder with a fencing token ($2, bigint). It is an error (SQLSTATE 22P02), after
/// which the transaction cannot commit, if a holder with a greater token has claimed it. Needs [`CLAIM_TABLE`].
pub const CLAIM: &str = include_str!("sql/transaction/claim.sql");

/// Makes the table of the claims, if it is missing.
pub const CLAIM_TABLE: &str = include_str!("sql/transaction/claim_table.sql");

/// The table of lease mode, for who migrates by hand: otherwise the first use makes it. The user of the locks needs SELECT,
/// INSERT and UPDATE on it. For another name or schema, change it in this text and say `?table=schema.name` in the URL.
pub const LEASE_TABLE: &str = include_str!("sql/lease/table.sql");

/// The same of session mode (`?mode=session`).
pub const SESSION_TABLE: &str = include_str!("sql/session/table.sql");

/// The id of the advisory lock for `name`: the first 8 bytes, in network order, of the SHA-256 of "polylock", a zero
/// byte and the name.
pub fn lock_id(name: &str) -> i64 {
    id_of_name(name)
}
