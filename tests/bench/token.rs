//! What the process between the box and its token costs: the same signatures by a bare loop over PKCS#11, and by the backend.
//!
//! PKCS#11 modules take their configuration from the environment, so this is measured by another process of this program, which
//! is started with it.

use std::{
    env, fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    mechanism::{
        Mechanism,
        eddsa::{EddsaParams, EddsaSignatureScheme},
    },
    object::{Attribute, ObjectClass},
    session::UserType,
};
use sallyport_core::sign::{Policy, SigningRequest};
use sallyport_e2e::{enclave::write_secret, repository, softhsm};
use sallyport_hsm::{
    Health, HelperPlace, HelperProgram, HelperSettings, HelperToken, KeyKind, KeyName, KeyRole,
    PinSource, ServedToken, Sessions, Token as _,
};
use sallyport_hsm_faults::{Fault, Function, ORDERS, Orders, REAL, Times};
use serde::{Deserialize, Serialize};

use crate::{
    scenes::folder,
    table::{Table, Target},
};

/// The argument that makes this program the one that measures.
pub(crate) const MEASURE: &str = "measure-token";

const PIN: &str = "correct horse";
const LABEL: &str = "bench";
const SERVER: &str = "alpha.example";
/// Signatures of each turn, and turns: short ones, so that whatever else the machine does hits all alike.
const SIGNATURES: usize = 400;
const ROUNDS: usize = 30;
/// Characters of a message, so that its event has about 1 KiB.
const MESSAGE: usize = 700;
/// How long the slow token takes for each signature.
const SLOW: Duration = Duration::from_millis(333);
/// Signatures of the slow token.
const SLOW_SIGNATURES: usize = 30;
/// How long a token may take to be opened.
const OPEN_WITHIN: Duration = Duration::from_secs(30);

/// Signatures per second.
#[derive(Serialize, Deserialize)]
struct Rates {
    bare: f64,
    many: f64,
    single: f64,
    slow: f64,
}

/// Has the rates measured and shows them.
pub(crate) fn token(table: &mut Table) -> Result<()> {
    let folder = folder()?;
    let hsm = softhsm::SoftHsm::create(&folder.path().join("softhsm"), LABEL, PIN)?;
    fs::create_dir(folder.path().join("orders"))?;
    write_secret(&folder.path().join("pin"), PIN)?;
    let output = Command::new(env::current_exe()?)
        .args([MEASURE.as_ref(), folder.path().as_os_str()])
        .env(softhsm::SoftHsm::VARIABLE, hsm.configuration())
        .env(REAL, softhsm::MODULE)
        .env(ORDERS, folder.path().join("orders"))
        .stderr(std::process::Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "the measurement failed");
    let Rates { bare, many, single, slow } = serde_json::from_slice(&output.stdout)?;
    let unit = "signatures/s";
    table.row("SoftHSM2 by a bare loop in one session", bare, unit, Target::None);
    table.row("  through the token's process, in batches", many, unit, Target::None);
    table.row("    of the bare loop", 100.0 * many / bare, "%", Target::Least(90.0));
    table.row("  through the token's process, one by one", single, unit, Target::None);
    table.row("    of the bare loop", 100.0 * single / bare, "%", Target::None);
    let own = 1.0 / SLOW.as_secs_f64();
    table.row("a token of 3 signatures a second catches up with", slow, unit, Target::None);
    table.row("  of its own rate", 100.0 * slow / own, "%", Target::Least(95.0));
    Ok(())
}

/// Measures, as the process that [`token`] starts, and prints the rates.
pub(crate) fn measure(folder: &Path) -> Result<()> {
    let executable = env::current_exe()?;
    let faulty = executable.with_file_name("deps").join("libsallyport_hsm_faults.so");
    let direct = start(folder, softhsm::MODULE.as_ref(), Sessions::default())?;
    let key = direct.generate(KeyRole::Event, KeyKind::Ed25519)?;
    let requests: Vec<_> = (0..SIGNATURES).map(request).collect::<Result<_>>()?;
    let mut times = [Duration::ZERO; 3];
    for _ in 0..ROUNDS {
        let took = [
            bare(&key, &requests)?,
            timed(|| {
                let signed = direct.sign_many(&key, &requests);
                Ok(signed.into_iter().collect::<Result<Vec<_>, _>>().map(drop)?)
            })?,
            timed(|| Ok(requests.iter().try_for_each(|r| direct.sign(&key, r).map(drop))?))?,
        ];
        times.iter_mut().zip(took).for_each(|(sum, time)| *sum += time);
    }
    drop(direct);
    let [bare, many, single] = times.map(|time| (ROUNDS * SIGNATURES) as f64 / time.as_secs_f64());

    // However many sessions a real one has, it signs one thing at a time.
    let slow = start(folder, &faulty, Sessions::try_from(1)?)?;
    let few = requests.get(..SLOW_SIGNATURES).context("too few requests")?;
    Orders::new(&folder.join("orders")).give(Function::Sign, Times::Always, Fault::Delay(SLOW))?;
    let took = timed(|| {
        Ok(slow.sign_many(&key, few).into_iter().collect::<Result<Vec<_>, _>>().map(drop)?)
    })?;
    let slow = SLOW_SIGNATURES as f64 / took.as_secs_f64();
    println!("{}", serde_json::to_string(&Rates { bare, many, single, slow })?);
    Ok(())
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed())
}

/// An event as a person's message makes it.
fn request(number: usize) -> Result<SigningRequest> {
    let body = "x".repeat(MESSAGE);
    let json = format!(
        r#"{{"auth_events":["$a","$b","$c"],"content":{{"body":"{body}","msgtype":"m.text"}},"depth":{number},"hashes":{{"sha256":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}},"origin_server_ts":1,"prev_events":["$d"],"room_id":"!room:{SERVER}","sender":"@alice:{SERVER}","type":"m.room.message"}}"#
    );
    Ok(SigningRequest::Pdu { room_version: "11".try_into()?, json })
}

fn policy() -> Result<Policy> {
    Ok(Policy { server_name: SERVER.try_into()? })
}

/// What no backend can beat: one session, the handle of the key known, nothing verified.
fn bare(key: &KeyName, requests: &[SigningRequest]) -> Result<Duration> {
    let policy = policy()?;
    let messages: Vec<_> =
        requests.iter().map(|request| request.bytes_to_sign(&policy)).collect::<Result<_, _>>()?;
    let module = Pkcs11::new(softhsm::MODULE)?;
    module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
    let mut slots = module.get_slots_with_token()?.into_iter();
    let slot = slots
        .find(|slot| module.get_token_info(*slot).is_ok_and(|info| info.label() == LABEL))
        .context("there is no token")?;
    let session = module.open_rw_session(slot)?;
    session.login(UserType::User, Some(&PIN.into()))?;
    let template = [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Id(key.id().to_vec())];
    let handle = session.find_objects(&template)?.pop().context("the key is not there")?;
    let pure = Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Ed25519));
    let took = timed(|| {
        Ok(messages
            .iter()
            .try_for_each(|message| session.sign(&pure, handle, message).map(drop))?)
    })?;
    drop(session);
    module.finalize()?;
    Ok(took)
}

fn start(folder: &Path, module: &Path, sessions: Sessions) -> Result<HelperToken> {
    let token = ServedToken {
        module: module.to_owned(),
        label: LABEL.to_owned(),
        serial: None,
        sessions,
        network: false,
        writable: vec![folder.to_owned()],
    };
    let path = repository::program("sallyport")?;
    let program = HelperProgram { path, arguments: vec!["token-helper".to_owned()] };
    let environment = vec![REAL.to_owned(), ORDERS.to_owned()];
    let token = HelperToken::start(HelperSettings {
        place: HelperPlace::Child { program, token, environment },
        pin: PinSource::File(folder.join("pin")),
        timeout: Duration::from_secs(30),
        policy: policy()?,
    })?;
    let started = Instant::now();
    while token.health() != Health::Ready {
        if started.elapsed() > OPEN_WITHIN {
            bail!("the token does not open: {:?}", token.health());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(token)
}
