//! The keys of certificates are replaced: that of the box, and that of the enclave CA.

use sallyport_core::sign::KeyRole;
use sallyport_hsm::KeyName;
use sallyport_store::OwnKey;

use super::Error;
use crate::{
    app::App,
    service::{order::Mandate, own_keys::Current},
    tls::{self, Certificates, Held, Part},
};

/// The part that an order about a role replaces; `None` if the role has nothing to do with certificates.
pub(super) fn part(role: KeyRole) -> Option<Part> {
    match role {
        KeyRole::Tls => Some(Part::Leaf),
        KeyRole::Ca => Some(Part::Authority),
        _ => None,
    }
}

/// The keys that an order about this part ends.
pub(super) fn ending(app: &App, part: Part) -> Result<Vec<Current>, Error> {
    let held = of(app)?.held(part, &app.store)?;
    Ok(held.into_iter().map(|held| held.current).collect())
}

/// What an order about this part does, in the order in which it does.
pub(super) fn steps(app: &App, part: Part, old_is_lost: bool) -> Result<Vec<String>, Error> {
    let certificates = of(app)?;
    let mut steps = Vec::new();
    let make = |role, otherwise: &str| {
        let in_token = certificates.will_be_in_token(role)?;
        let place = if in_token { "in the token" } else { otherwise };
        Ok::<_, Error>(format!("make a new {role} key {place}"))
    };
    if part == Part::Authority {
        steps.push(make(KeyRole::Ca, "in the box's file tls/ca.json, as no token is configured")?);
        steps.push(
            "make a new certificate of the enclave CA with it, and put that into ca.pem".to_owned(),
        );
    }
    steps.push(make(KeyRole::Tls, "in the box's vault")?);
    steps.push("have the enclave CA certify it, and serve that certificate from then on; connections that are there go on".to_owned());
    for Held { current, in_token } in certificates.held(part, &app.store)? {
        let name = &current.name;
        steps.push(match (in_token, old_is_lost) {
            (true, false) => format!("retire {name}; the box destroys it in the token once no certificate and no handshake needs it"),
            (true, true) => format!("note that {name} is gone with its token"),
            (false, _) => format!("overwrite {name}, which is not in the token"),
        });
    }
    if part == Part::Authority {
        steps.push(
            "afterwards: hand the new ca.pem out. EVERY DEVICE must trust it before it can connect again, and should no longer trust the old one; compare \
             the fingerprint with `sallyctl certificate show`"
                .to_owned(),
        );
        if certificates.status()?.vouched_for {
            steps.push(
                "afterwards: the higher CA that vouches for the old CA does not vouch for the new one: `sallyctl certificate request`, \
                 `sallyctl certificate install`"
                    .to_owned(),
            );
        }
    }
    Ok(steps)
}

/// Replaces the keys. The rows and what the database knows of the keys are one transaction; the certificate, which is a file, follows it, and a
/// power cut in between is made up for when the box looks at its certificate next.
pub(super) fn replace(
    app: &App,
    part: Part,
    old: &[Current],
    lost: bool,
    mandate: &Mandate,
) -> Result<Vec<OwnKey>, Error> {
    let now = mandate.now();
    let held = of(app)?.rotate(part, &app.store, now, |new| {
        let entries: Vec<_> =
            new.iter().map(|new| super::rotated(old, &new.current.key, lost, mandate)).collect();
        let ended: Vec<_> = old.iter().map(|old| old.name.to_string()).collect();
        let in_token = new.iter().filter(|new| new.in_token);
        let kept: Vec<OwnKey> = in_token.map(|new| new.current.key.clone()).collect();
        app.store.write::<_, sallyport_store::Error>(move |write| {
            // Names of keys outside the token are not in the database: nothing is noted of those.
            for name in &ended {
                write.retire_own_key(name, now)?;
                if lost {
                    write.note_destroyed_key(name, now)?;
                }
            }
            kept.iter().try_for_each(|key| write.insert_own_key(key))?;
            entries.into_iter().try_for_each(|entry| write.append_audit(entry).map(drop))
        })?;
        Ok::<_, Error>(())
    })?;
    // The signer destroys what nobody needs any more.
    app.notify.wake_signer();
    Ok(held.into_iter().map(|held| held.current.key).collect())
}

/// Whether a certificate needs a key in the token.
pub(super) fn uses(app: &App, key: &KeyName) -> Result<bool, Error> {
    // Without a listener with TLS nobody knows what the files name.
    Ok(app.certificates.as_ref().map_or(Ok(true), |certificates| certificates.uses(key))?)
}

/// What becomes of the keys of certificates when the box goes on with another token.
pub(super) fn after_hand_over(app: &App) -> Result<Option<String>, Error> {
    let Some(certificates) = &app.certificates else { return Ok(None) };
    let held = match certificates.held(Part::Authority, &app.store) {
        Err(tls::Error::GivenAsFiles | tls::Error::NoAuthority) => return Ok(None),
        held => held?,
    };
    let left: Vec<_> = held.iter().filter(|held| held.in_token).collect();
    let handshakes = left.iter().any(|held| held.current.name.role() == KeyRole::Tls);
    let until = if handshakes {
        "until then the new token cannot sign handshakes, and nobody connects"
    } else {
        "until then its certificate is served on, and cannot be renewed"
    };
    Ok((!left.is_empty()).then(|| {
        format!(
            "afterwards, with the new token: make a new enclave CA in it (`sallyctl hsm rotate ca`), as the CA's key stays in the old one: {until}"
        )
    }))
}

fn of(app: &App) -> Result<&Certificates, Error> {
    app.certificates.as_deref().ok_or(Error::NoCertificate)
}
