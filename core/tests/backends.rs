//! Every case on every backend.
//!
//! The list of cases is a macro and the list of backends is another, so that no pair can be missing: a case that is
//! not in the list is dead code, which is an error here, and a backend without a store fails a test of its own.
//! Redis, PostgreSQL and ZooKeeper are real: run through `tests/servers/with_servers.py`.

#![deny(dead_code)]

mod cases;

use cases::Store;

/// A module of tests for one backend: one for each case.
macro_rules! backend {
    ($backend:ident: $($case:ident)*) => {
        mod $backend {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::cases::run(super::Store::$backend(), super::cases::$case).await;
                }
            )*
        }
    };
}

macro_rules! backends {
    ($($backend:ident)*; $cases:tt) => {
        const BACKENDS: &[&str] = &[$(stringify!($backend)),*];
        $( backends! { @ $backend $cases } )*
    };
    (@ $backend:ident { $($case:ident)* }) => { backend! { $backend: $($case)* } };
}

backends! {
    memory file redis redlock postgres postgres_session pgbouncer zookeeper;
    {
        excludes
        hands_over_to_another_manager
        serves_in_order
        times_out
        is_not_reentrant
        tries_once
        those_in_line_time_out
        who_stands_still_is_passed
        a_grant_that_nobody_collects_ends_with_its_ttl
        releases_once
        releases_when_dropped
        extends
        extends_to_another_ttl
        does_not_extend_what_expired
        does_not_release_the_next_holder
        renews_in_the_background
        expires_without_renewal
        is_silent_after_release
        ends_at_max_hold
        tokens_grow
        survives_cancelled_acquisitions
        survives_cancelled_waits
        survives_cancelled_releases
        cancelled_waiter_leaves_the_line
        closing_ends_everything
        inspects
        lists
        lists_each_of_several_holders
        breaks
        breaks_though_given_up
        counts
        tells
        refuses_bad_arguments
        loses_no_update
        works_without_a_runtime
        takes_all_or_none
        shares
        a_waiting_writer_is_not_starved
        counts_permits
        serves_processes_in_order
        passes_over_who_left
        leaves_nothing_behind
    }
}

#[test]
fn no_backend_is_left_out() {
    let sources = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/backend");
    for entry in std::fs::read_dir(sources).expect("no sources") {
        let entry = entry.expect("no sources");
        if entry.file_type().expect("no file type").is_dir() {
            let name = entry.file_name().into_string().expect("not UTF-8");
            assert!(BACKENDS.contains(&name.as_str()), "no case runs on the backend {name}");
        }
    }
}
