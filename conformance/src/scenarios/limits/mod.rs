//! Sizes, bytes and names at their limits.

mod bytes;
mod counted;
mod damage;
mod ids;
mod inflation;
mod sizes;

use crate::{
    Strategy,
    scenario::{Convictor, Scenario},
};
use std::time::Duration;

/// Where the claim is one about the product and about its drivers.
const PRODUCT_AND_DRIVER: &[Strategy] = &[Strategy::Write, Strategy::Exclusive, Strategy::Driver];

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::check::<bytes::AnyBytesAnyKey>(
        "limits/any_bytes_any_key",
        "binary, empty, Unicode, NUL, the largest allowed value: what was put comes back, by every verb",
        Convictor::Mutant("stops_at_nul"),
    )
    .strategies(PRODUCT_AND_DRIVER),
    Scenario::check::<sizes::TooLargeIsRefused>(
        "limits/too_large_is_refused",
        "before it is sent, by a typed error; the old record stays",
        Convictor::Mutant("cuts_what_is_too_long"),
    )
    .strategies(PRODUCT_AND_DRIVER),
    Scenario::check::<damage::DamagedRecordIsAnError>(
        "limits/damaged_record_is_an_error",
        "each damaged byte gives a clear error of its own kind, no panic, no new empty session; the record stays",
        Convictor::BLIND,
    )
    .strategies(Strategy::SESSIONS),
    Scenario::check::<inflation::InflationIsBounded>(
        "limits/inflation_is_bounded",
        "a compressed bomb is refused, and stays what it is",
        Convictor::Mutant("inflates_what_looks_compressed"),
    )
    .strategies(PRODUCT_AND_DRIVER),
    Scenario::check::<ids::BadIdsAreRefused>(
        "limits/bad_ids_are_refused",
        "empty, overlong, `../`, NUL, other alphabets: no session, and no store is asked",
        Convictor::BLIND,
    )
    .strategies(Strategy::SESSIONS),
];

/// Longer than any scenario takes.
const LONG: Duration = Duration::from_secs(600);
