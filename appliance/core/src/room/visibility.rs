//! Who may see an event.
//!
//! [Client-Server API, "Room history visibility"](https://spec.matrix.org/v1.16/client-server-api/#room-history-visibility).

use ruma::events::room::{history_visibility::HistoryVisibility, member::MembershipState};

/// What was true for one user at one point of a room's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// The room's history visibility. A room that names none, or one that is not understood, is `shared`.
    pub history: HistoryVisibility,
    /// What the user was in the room; `Leave` if they were never there.
    pub membership: MembershipState,
}

/// Whether a user may see an event that was sent in this moment; `joined_after` says whether they joined at any time after it.
///
/// For the user's own member events and for events that change the history visibility, the moments before and after
/// the event count: either suffices.
#[must_use]
pub fn may_see(moment: &Moment, joined_after: bool) -> bool {
    match (&moment.history, &moment.membership) {
        (HistoryVisibility::WorldReadable, _) | (_, MembershipState::Join) => true,
        (HistoryVisibility::Invited, membership) => *membership == MembershipState::Invite,
        (HistoryVisibility::Joined, _) => false,
        // Shared, and whatever is not understood.
        _ => joined_after,
    }
}

/// Whether a member whose membership is this may see everything that was sent while the room's history was this.
#[must_use]
pub fn shows_all_to_members(history: &HistoryVisibility) -> bool {
    !matches!(history, HistoryVisibility::Invited | HistoryVisibility::Joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_the_specification() {
        use HistoryVisibility as H;
        use MembershipState as M;
        // History visibility, membership, joined after: may see.
        let table = [
            (H::WorldReadable, M::Leave, false, true),
            (H::WorldReadable, M::Ban, false, true),
            (H::WorldReadable, M::Join, false, true),
            (H::Shared, M::Leave, false, false),
            (H::Shared, M::Leave, true, true),
            (H::Shared, M::Invite, false, false),
            (H::Shared, M::Invite, true, true),
            (H::Shared, M::Ban, false, false),
            (H::Shared, M::Ban, true, true),
            (H::Shared, M::Knock, false, false),
            (H::Shared, M::Join, false, true),
            (H::Invited, M::Leave, true, false),
            (H::Invited, M::Knock, true, false),
            (H::Invited, M::Ban, true, false),
            (H::Invited, M::Leave, false, false),
            (H::Invited, M::Invite, true, true),
            (H::Invited, M::Invite, false, true),
            (H::Invited, M::Join, false, true),
            (H::Joined, M::Leave, true, false),
            (H::Joined, M::Invite, true, false),
            (H::Joined, M::Ban, true, false),
            (H::Joined, M::Join, false, true),
            (H::from("org.example.unknown"), M::Leave, false, false),
            (H::from("org.example.unknown"), M::Leave, true, true),
            (H::from("org.example.unknown"), M::Join, false, true),
        ];
        for (history, membership, joined_after, expected) in table {
            let moment = Moment { history, membership };
            assert_eq!(may_see(&moment, joined_after), expected, "{moment:?} {joined_after}");
        }
    }

    #[test]
    fn what_is_shown_to_all_members_is_what_a_later_join_opens() {
        for history in [
            HistoryVisibility::WorldReadable,
            HistoryVisibility::Shared,
            HistoryVisibility::Invited,
            HistoryVisibility::Joined,
        ] {
            let moment = Moment { history: history.clone(), membership: MembershipState::Leave };
            assert_eq!(shows_all_to_members(&history), may_see(&moment, true));
        }
    }
}
