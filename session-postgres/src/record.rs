//! Rows and what they mean.

use crate::failure;
use bytes::Bytes;
use session_core::{PrincipalKey, Result, Stored, Version};
use sqlx::{
    Execute, Executor as _, PgConnection, Postgres, Row as _,
    postgres::{PgArguments, PgRow},
};
use std::{future::Future, pin::Pin, time::Duration};

/// The longest time to live, some 31,000 years: more would not fit the column of hours.
const MAX_TTL_US: i64 = 1_000_000_000_000_000_000;

pub(crate) type Fetched<'a, T> = Pin<Box<dyn Future<Output = sqlx::Result<T>> + Send + 'a>>;

/// What a statement answers with. For one row the client library has a shorter way than for many.
pub(crate) trait Fetch: Sized {
    fn fetch<'e, 'q: 'e, E: Execute<'q, Postgres> + 'q>(
        query: E,
        from: &'e mut PgConnection,
    ) -> Fetched<'e, Self>;
}

impl Fetch for Option<PgRow> {
    fn fetch<'e, 'q: 'e, E: Execute<'q, Postgres> + 'q>(
        query: E,
        from: &'e mut PgConnection,
    ) -> Fetched<'e, Self> {
        from.fetch_optional(query)
    }
}

impl Fetch for Vec<PgRow> {
    fn fetch<'e, 'q: 'e, E: Execute<'q, Postgres> + 'q>(
        query: E,
        from: &'e mut PgConnection,
    ) -> Fetched<'e, Self> {
        from.fetch_all(query)
    }
}

/// Room for so many arguments with so many bytes in all, at once instead of by and by.
pub(crate) fn arguments(count: usize, bytes: usize) -> PgArguments {
    let mut arguments = PgArguments::default();
    sqlx::Arguments::reserve(&mut arguments, count, bytes + 12 * count); // each has its length; a number is 8 bytes
    arguments
}

/// Microseconds, rounded up to whole milliseconds: what is declared as the resolution.
pub(crate) fn micros(duration: Duration) -> i64 {
    let millis = duration.as_nanos().div_ceil(1_000_000);
    i64::try_from(millis.saturating_mul(1000)).unwrap_or(MAX_TTL_US).min(MAX_TTL_US)
}

/// Milliseconds for a setting of the server, rounded up; never 0, which would mean for ever.
pub(crate) fn setting_ms(duration: Duration) -> i32 {
    i32::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX).max(1)
}

/// What is left of a time, as the server said; it may have passed meanwhile.
pub(crate) fn left(us: i64) -> Duration {
    Duration::from_micros(u64::try_from(us).unwrap_or_default())
}

/// The columns `version`, `data`, `left_us` and `principal`.
pub(crate) fn stored(operation: &'static str, row: &PgRow) -> Result<Stored> {
    let failed = |error| failure::of_statement(operation, error);
    assemble(
        operation,
        row.try_get("version").map_err(failed)?,
        row.try_get("data").map_err(failed)?,
        row.try_get("left_us").map_err(failed)?,
        row.try_get("principal").map_err(failed)?,
    )
}

pub(crate) fn assemble(
    operation: &'static str,
    version: Vec<u8>,
    data: Vec<u8>,
    left_us: i64,
    principal: Option<Vec<u8>>,
) -> Result<Stored> {
    let version = version.try_into().map_err(|_| failure::damaged(operation, "a version is 16 bytes"))?;
    let principal = principal
        .map(|bytes| bytes.try_into().map_err(|_| failure::damaged(operation, "a principal is 32 bytes")))
        .transpose()?;
    Ok(Stored::new(Version::from_bytes(version), Bytes::from(data), left(left_us))
        .principal(principal.map(PrincipalKey::from_bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_up_and_bounded() {
        assert_eq!(micros(Duration::from_nanos(1)), 1000);
        assert_eq!(micros(Duration::from_millis(2)), 2000);
        assert_eq!(micros(Duration::MAX), MAX_TTL_US);
        assert_eq!(setting_ms(Duration::ZERO), 1);
        assert_eq!(left(-1), Duration::ZERO);
    }

    #[test]
    fn foreign_bytes_are_damaged() {
        let kind = |version, principal| assemble("load", version, vec![], 1, principal).unwrap_err().kind();
        assert_eq!(kind(vec![1; 15], None), session_core::ErrorKind::Damaged);
        assert_eq!(kind(vec![1; 16], Some(vec![2; 31])), session_core::ErrorKind::Damaged);
        assert!(assemble("load", vec![1; 16], vec![], 1, Some(vec![2; 32])).is_ok());
    }
}
