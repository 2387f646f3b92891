//! The header that is checked in is the one that the sources give: `UPDATE=1 cargo test -p polylock-c --test header`
//! writes it.

use std::path::Path;

/// The version as macros, to be compared at compile time.
fn version_macros() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap());
    let (major, minor, patch) = (numbers.next().unwrap(), numbers.next().unwrap(), numbers.next().unwrap());
    format!(
        "\n/** Version that this header belongs to; polylock_version() tells that of the library which is loaded. */\n\
         #define POLYLOCK_VERSION \"{version}\"\n\
         #define POLYLOCK_VERSION_MAJOR {major}\n\
         #define POLYLOCK_VERSION_MINOR {minor}\n\
         #define POLYLOCK_VERSION_PATCH {patch}\n\
         /** For comparisons: major * 1,000,000 + minor * 1,000 + patch. */\n\
         #define POLYLOCK_VERSION_NUMBER {}\n",
        major * 1_000_000 + minor * 1_000 + patch
    )
}

#[test]
fn the_header_is_up_to_date() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut config = cbindgen::Config::from_file(here.join("cbindgen.toml")).unwrap();
    config.after_includes = Some(version_macros());
    let mut made = Vec::new();
    cbindgen::generate_with_config(here, config).unwrap().write(&mut made);
    let made = String::from_utf8(made).unwrap();
    let path = here.join("../../include/polylock.h");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let checked_in = std::fs::read_to_string(&path).unwrap();
    assert!(checked_in == made, "include/polylock.h is not what the sources give; see this test's first line");
}
