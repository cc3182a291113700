//! From the first insert to the last delete: ids, rotation, destruction.

mod belonging;
mod destroying;
mod identity;
mod rotating;

use crate::{
    Strategy,
    scenario::{Convictor, Need, Scenario},
};

/// One of the controls, to lose, and the product.
const BLIND_AND_PRODUCT: &[Strategy] = &[Strategy::Blind, Strategy::Write, Strategy::Exclusive];

/// Where a single caller looks: one process is enough, and the order of the steps is the scenario's.
const ONE: &[Need] = &[Need::OneProcess];

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new::<destroying::DestroyedIsNotRevived>(
        "lifecycle/destroyed_is_not_revived",
        "save, touch and expiry refresh after a destroy all say `Missing`; nothing comes back, not even in part",
        Convictor::BLIND,
    )
    .strategies(BLIND_AND_PRODUCT)
    .cap(80)
    .overlap(10),
    Scenario::new::<destroying::DestroyWhileWaitersQueue>(
        "lifecycle/destroy_while_waiters_queue",
        "the next lock holder sees that the session is gone",
        Convictor::Mutant("unlocks_before_it_deletes"),
    )
    .strategies(&[Strategy::Exclusive])
    .cap(40)
    .overlap(10),
    Scenario::check::<identity::UnknownIdIsNotAdopted>(
        "lifecycle/unknown_id_is_not_adopted",
        "opening an id that nobody issued creates nothing and keeps nothing of it",
        Convictor::Mutant("locks_unknown_ids"),
    )
    .strategies(Strategy::PRODUCT),
    Scenario::check::<identity::EmptySessionIsNotStored>(
        "lifecycle/empty_session_is_not_stored",
        "a request that puts nothing in leaves no record",
        Convictor::BLIND,
    )
    .strategies(BLIND_AND_PRODUCT),
    Scenario::check::<identity::UnchangedIsNotRewritten>(
        "lifecycle/unchanged_is_not_rewritten",
        "a request that changes nothing leaves the version as it was",
        Convictor::BLIND,
    )
    .strategies(BLIND_AND_PRODUCT),
    Scenario::new::<rotating::RotationHasOneWinner>(
        "lifecycle/rotation_has_one_winner",
        "two rotations at once: one new id, no third living record; data intact, also what was committed meanwhile; the old id dead (or within its grace)",
        Convictor::BLIND,
    )
    .cap(60)
    .overlap(10),
    Scenario::new::<rotating::DestroyFollowsRotation>(
        "lifecycle/destroy_follows_rotation",
        "logout with the old cookie during a rotation ends the new session too",
        Convictor::BLIND,
    )
    .cap(60)
    .overlap(10),
    Scenario::check::<identity::AnIdIsInsertedOnce>(
        "lifecycle/an_id_is_inserted_once",
        "a delayed, repeated insert never brings a destroyed session back",
        Convictor::Mutant("insert_overwrites"),
    )
    .needs(ONE),
    Scenario::new::<destroying::RevokeAllBeatsWriters>(
        "lifecycle/revoke_all_beats_writers",
        "after `revoke_all(user)` no session of that user exists, whatever was in flight",
        Convictor::BLIND,
    )
    .strategies(BLIND_AND_PRODUCT)
    .needs(&[Need::Index])
    .cap(80),
];
