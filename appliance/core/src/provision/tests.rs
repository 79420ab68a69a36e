//! Documents, and whom a box believes.

use ed25519_dalek::Signer as _;
use ruma::server_name;

use super::{Code, Document, Provisioned, Refused, Trust, first};
use crate::{
    admin::{Approval, Consent, Unapproved},
    digest::Sha256,
    sign::{Algorithm, Policy, PublicKey},
    time::Millis,
};

fn officer(seed: u8) -> (ed25519_dalek::SigningKey, PublicKey) {
    let secret = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]);
    let key = PublicKey::new(Algorithm::Ed25519, secret.verifying_key().as_bytes()).unwrap();
    (secret, key)
}

fn approval(document: &str, seed: u8) -> Approval {
    let (secret, key) = officer(seed);
    let enclave = server_name!("alpha.example").to_owned();
    let policy = Policy { server_name: enclave.clone() };
    let consent = Consent::to_provision(enclave, Sha256::of(document.as_bytes()));
    let signed = consent.sign(Millis(1), &key, |request| {
        request.bytes_to_sign(&policy).map(|bytes| secret.sign(&bytes).to_bytes().into())
    });
    signed.unwrap()
}

/// A document of these officers, of whom so many must sign; `more` stands between the head and the tables.
fn document(serial: u64, officers: &[u8], needed: u8, more: &str) -> String {
    let keys: Vec<String> =
        officers.iter().map(|seed| format!("\"{}\"", officer(*seed).1)).collect();
    format!(
        "serial = {serial}\nserver_name = \"alpha.example\"\n{more}\n[officers]\ntrusted_keys = [{}]\n\
         provision_approvals = {needed}\n",
        keys.join(", ")
    )
}

fn parse(text: &str) -> (Document, Sha256) {
    Document::parse(text.as_bytes()).unwrap()
}

#[test]
fn faults_name_the_key_and_the_remedy() {
    let table = [
        ("serial = 2", "does not have its shape"),
        ("public_url = \"http://alpha.example\"", "public_url: write it like"),
        ("public_url = \"https://\"", "public_url"),
        ("public_url = \"https://a b\"", "public_url"),
        ("public_url = \"https://a:99999\"", "public_url"),
        ("unknown = 1", "does not have its shape"),
        ("[network]\naddress = \"192.168.7.1\"", "does not have its shape"),
        ("[network]\naddress = \"127.0.0.1/8\"", "does not have its shape"),
        ("[network]\naddress = \"192.168.7.1/33\"", "does not have its shape"),
        ("[network]\ngateway = \"192.168.7.1\"", "network.gateway: leave it out"),
        ("[network]\naddress = \"192.168.7.1/24\"\ngateway = \"fd00::1\"", "of the same kind"),
        ("[network]\ninterface = \"eth0\"", "does not have its shape"),
        ("[tls]\nnames = [\"https://a\"]", "tls.names"),
        ("[tls]\nkey_in = \"token\"", "there is no [token]"),
        ("[token]\nkind = \"opensc\"", "token.label: write the label"),
        ("[token]\nkind = \"opensc\"\nlabel = \"a\\nb\"", "token.label"),
        ("[token]\nkind = \"opensc\"\nlabel = \"a\"\nserial = \"\"", "token.serial"),
        ("[token]\nkind = \"opensc\"\nlabel = \"a\"\nsessions = 17", "token.sessions"),
        ("[token]\nkind = \"opensc\"\nlabel = \"a\"\ntimeout_ms = 5", "token.timeout_ms"),
        ("[token]\nkind = \"software\"", "allow_software_keys = true"),
        ("allow_software_keys = true\n[token]\nkind = \"software\"\nlabel = \"a\"", "leave it out"),
        // Nobody who brings a stick says which file is loaded, nor leads out of the folder of modules.
        (
            "[token]\nkind = \"opensc\"\nlabel = \"a\"\nmodule = \"/m.so\"",
            "does not have its shape",
        ),
        ("[token]\nkind = \"../opensc\"\nlabel = \"a\"", "does not have its shape"),
        ("[token]\nkind = \"\"\nlabel = \"a\"", "does not have its shape"),
        (
            "[token]\nkind = \"opensc\"\nlabel = \"a\"\npin = \"file:/pin\"",
            "does not have its shape",
        ),
    ];
    for (more, says) in table {
        let error = Document::parse(document(1, &[1], 1, more).as_bytes()).unwrap_err().to_string();
        assert!(error.contains(says), "{more} gives {error}");
    }
    for (serial, officers, needed) in [
        (0, &[1][..], 1),
        (u64::MAX, &[1], 1),
        (1, &[], 1),
        (1, &[1], 0),
        (1, &[1], 2),
        (1, &[1, 1], 1),
    ] {
        let text = document(serial, officers, needed, "");
        assert!(Document::parse(text.as_bytes()).is_err(), "{text}");
    }
    assert!(Document::parse(&vec![b' '; 1 << 20]).is_err());
    assert!(Document::parse(&[0xff]).is_err());
}

#[test]
fn a_whole_document_says_what_it_says() {
    let more = "public_url = \"https://chat.alpha.example:8448\"\nunattended = true\n\
                listen = [\"10.0.0.1:443\"]\n[network]\naddress = \"10.0.0.1/8\"\ngateway = \"10.0.0.2\"\n\
                interface = \"52:54:00:AB:cd:ef\"\n[tls]\nnames = [\"10.0.0.1\", \"chat.alpha.example\"]\n\
                [token]\nkind = \"opensc\"\nlabel = \"alpha\"\nserial = \"12ab\"\npin = \"pad\"\nsessions = 3\n";
    let (parsed, _) = parse(&document(7, &[1, 2], 2, more));
    assert_eq!(parsed.network.address.to_string(), "10.0.0.1/8");
    assert_eq!(parsed.network.interface.unwrap().to_string(), "52:54:00:ab:cd:ef");
    assert_eq!((parsed.serial, parsed.unattended), (7, true));
    // What is written again means the same.
    let again = toml::to_string(&parsed).unwrap();
    assert_eq!(parse(&again).0, parsed, "{again}");
}

#[test]
fn the_box_listens_on_addresses_that_it_has() {
    let network = "[network]\naddress = \"10.0.0.1/8\"\n";
    for (listen, network, accepted) in [
        ("10.0.0.1:443", network, true),
        ("0.0.0.0:443", network, true),
        ("[::]:443", network, true),
        ("127.0.0.1:443", network, true),
        ("10.0.0.2:443", network, false),
        // Another one may come by DHCP.
        ("10.0.0.2:443", "", true),
    ] {
        let text = document(1, &[1], 1, &format!("listen = [\"{listen}\"]\n{network}"));
        assert_eq!(Document::parse(text.as_bytes()).is_ok(), accepted, "{text}");
    }
}

#[test]
fn a_first_document_is_approved_by_its_own_officers() {
    let text = document(1, &[1, 2], 2, "");
    let (parsed, sha256) = parse(&text);
    let by = |seeds: &[u8]| {
        let approvals: Vec<_> = seeds.iter().map(|seed| approval(&text, *seed)).collect();
        first(&parsed, sha256, &approvals)
    };
    assert_eq!(by(&[1, 2]).unwrap().names().len(), 2);
    let missing = by(&[2, 2]).unwrap_err();
    assert!(matches!(missing, Refused::Unapproved(Unapproved::TooFew { needed: 2, given: 1, .. })));
    assert!(matches!(by(&[1, 2, 3]), Err(Refused::Unapproved(Unapproved::Bad { number: 3, .. }))));
    // An approval of another document, by one space.
    let other = [approval(&text, 1), approval(&format!("{text} "), 2)];
    assert!(matches!(first(&parsed, sha256, &other), Err(Refused::Unapproved(_))));
}

#[test]
fn later_documents_are_approved_by_the_officers_before_them() {
    let text = document(1, &[1, 2], 2, "");
    let (parsed, sha256) = parse(&text);
    let approvers = first(&parsed, sha256, &[approval(&text, 1), approval(&text, 2)]).unwrap();
    let record =
        Provisioned::begin(text.as_bytes(), approvers, Trust::Unattended, Millis(5)).unwrap();
    let admit = |text: &str, seeds: &[u8]| {
        let (document, sha256) = parse(text);
        let approvals: Vec<_> = seeds.iter().map(|seed| approval(text, *seed)).collect();
        record.admit(&document, sha256, &approvals)
    };
    // The same again, whoever brings it.
    assert_eq!(admit(&text, &[]).unwrap(), None);
    // A new officer takes over: approved by the old ones, and not by the new.
    let next = document(2, &[3], 1, "");
    assert!(matches!(admit(&next, &[3]), Err(Refused::Unapproved(Unapproved::Bad { .. }))));
    assert!(matches!(admit(&next, &[1]), Err(Refused::Unapproved(Unapproved::TooFew { .. }))));
    let approvers = admit(&next, &[2, 1]).unwrap().unwrap();
    for old in [document(1, &[1], 1, ""), document(1, &[1, 2], 2, "unattended = true")] {
        assert!(matches!(admit(&old, &[1, 2]), Err(Refused::Old { found: 1, in_force: 1 })));
    }
    let bravo = next.replace("alpha.example", "bravo.example");
    assert!(matches!(admit(&bravo, &[1, 2]), Err(Refused::OtherEnclave { .. })));

    let record = record.follow(next.as_bytes(), approvers, Millis(6)).unwrap();
    let record = Provisioned::decode(&record.encode().unwrap()).unwrap();
    assert_eq!(record.document().serial, 2);
    assert_eq!(record.approvers().names().len(), 2);
    assert_eq!(record.trust(), Trust::Unattended, "how it began is never forgotten");
    let last = document(3, &[3], 1, "");
    let (document, sha256) = parse(&last);
    assert!(record.admit(&document, sha256, &[approval(&last, 1)]).is_err(), "the old officer");
    assert!(record.admit(&document, sha256, &[approval(&last, 3)]).is_ok());
}

#[test]
fn codes_are_typed_by_people() {
    let code = Code::of(&Sha256::of(b"one"));
    let text = code.to_string();
    assert_eq!(text.len(), 19);
    assert!(text.split(' ').all(|group| group.len() == 4));
    assert!(code.is(&text) && code.is(&text.replace(' ', "")) && code.is(&format!(" {text}\n")));
    assert!(!code.is(&text[1..]) && !code.is("") && !code.is(&format!("{text}0")));
    let other = Code::of(&Sha256::of(b"two"));
    assert!(other != code && !other.is(&text));
    // As the officers' machines of every version print it.
    assert_eq!(text, "6269 6319 7912 5988");
}

#[test]
fn damaged_records_are_refused() {
    let text = document(1, &[1], 1, "");
    let (parsed, sha256) = parse(&text);
    let approvers = first(&parsed, sha256, &[approval(&text, 1)]).unwrap();
    let record = Provisioned::begin(text.as_bytes(), approvers, Trust::Console, Millis(5)).unwrap();
    let bytes = record.encode().unwrap();
    assert_eq!(Provisioned::decode(&bytes).unwrap(), record);
    for kept in [0, 1, bytes.len() / 2, bytes.len() - 1] {
        assert!(Provisioned::decode(&bytes[..kept]).is_err(), "{kept}");
    }
    assert!(Provisioned::decode(&[bytes, vec![0]].concat()).is_err());
}
