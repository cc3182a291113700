//! Backends with a server.

use super::Started;
use session_conformance::servers::find_program;
use std::{future::Future, pin::Pin};

/// A backend whose driver is not in this build.
pub(super) fn not_built(
    program: &'static str,
    package: &'static str,
) -> Pin<Box<dyn Future<Output = Started> + Send>> {
    let install = match find_program(program, &[]) {
        Some(_) => format!("{program} is here, but this build has no driver for it"),
        None => format!("{program} is not installed: apt-get install {package}"),
    };
    Box::pin(async { Started::Absent(install) })
}
