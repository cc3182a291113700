//! Backends with a server.

use super::Started;
use session_conformance::servers::find_program;
use std::{future::Future, pin::Pin};

/// A backend whose driver is not in this build; says how to install its server all the same.
pub(super) fn not_built(
    program: &'static str,
    package: &'static str,
) -> Pin<Box<dyn Future<Output = Started> + Send>> {
    let why = match find_program(program, &[]) {
        Some(_) => "this build has no driver for it; its server",
        None => "its server is not installed",
    };
    Box::pin(async move { Started::Absent(format!("{why}: apt-get install {package}")) })
}
