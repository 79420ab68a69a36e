//! What is said when something from outside is refused: what happened, and after a colon what to do.

use ruma::owned_server_name;
use sallyport_core::{
    bundle::Error as Bundle, card::CardError as Card, roster::signed::Refused as Roster,
    time::Millis,
};

fn says_what_to_do(error: &dyn std::error::Error) {
    let text = error.to_string();
    let advice = text.split_once([':', ';']).map_or("", |(_, advice)| advice.trim());
    assert!(advice.split(' ').count() >= 3, "{text}");
}

#[test]
fn each_says_what_to_do() {
    let alpha = || owned_server_name!("alpha.example");
    let bravo = || owned_server_name!("bravo.example");
    let io = || std::io::Error::other("for the test");
    for error in [
        Bundle::NotABundle,
        Bundle::NewerFormat { found: 9 },
        Bundle::Truncated,
        Bundle::Trailing,
        Bundle::Header(None),
        Bundle::SenderCard(Card::BadSignature),
        Bundle::WrongSender { claimed: alpha(), signer: bravo() },
        Bundle::WrongRecipient { to: bravo() },
        Bundle::Expired { expires: Millis(0) },
        Bundle::Oversized { bytes: 2, max: 1 },
        Bundle::Token(Box::new(io())),
        Bundle::Damaged { chunk: 1 },
        Bundle::Manifest("for the test"),
        Bundle::SectionHash { section: 1 },
        Bundle::UnknownSection { section: 1, kind: 99 },
        Bundle::Bomb { section: 1 },
        Bundle::Exchanged,
        Bundle::Read(io()),
    ] {
        says_what_to_do(&error);
    }
    for error in [
        Card::TooLarge { bytes: 2, max: 1 },
        Card::Malformed(None),
        Card::NewerFormat { found: 9 },
        Card::BadSignature,
        Card::Unsound("for the test"),
        Card::ServerKeys(None),
        Card::NotYetValid { not_before: Millis(0) },
        Card::Expired { not_after: Millis(0) },
        Card::OtherServer { found: alpha(), expected: bravo() },
        Card::OtherRoot,
        Card::NotNewer { found: 1, known: 2 },
        Card::Forked,
    ] {
        says_what_to_do(&error);
    }
    for error in [Roster::TooLarge, Roster::NotARosterFile, Roster::Body] {
        says_what_to_do(&error);
    }
}
