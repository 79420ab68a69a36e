//! `make run`: a development enclave under `.dev/`, with a sample roster, for trying out Matrix clients.
//!
//! `TOKEN=softhsm` keeps its keys in SoftHSM2; `DEV_DIR` and `DEV_ADDRESS` put it elsewhere.

use std::{env, fs, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};
use sallyport_e2e::{
    desk::Code,
    enclave::{Enclave, Plan, Token},
    narrator::Narrator,
    place::Place,
    repository,
};
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    time::sleep,
};

/// Who works in the sample enclave.
const ROSTER: &str = "\
localpart,display_name,unit,clearance
alice,Alice Archer,Headquarters,SECRET
bob,Bob Baker,Headquarters,RESTRICTED
carol,Carol Carter,Signals,SECRET
";

const ADDRESS: &str = "127.0.0.1:8448";

/// How often we look whether the box has ended by itself.
const LOOK_EVERY: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("make run: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let token = match env::var("TOKEN").as_deref() {
        Ok("softhsm") => Token::SoftHsm,
        Ok("software") | Err(_) => Token::Software { delay_ms: 0 },
        Ok(other) => bail!("TOKEN={other} is not known; say TOKEN=software or TOKEN=softhsm"),
    };
    let dev = env::var_os("DEV_DIR").map_or_else(|| repository::root().join(".dev"), PathBuf::from);
    let folder = dev.join(match token {
        Token::SoftHsm => "softhsm",
        Token::Software { .. } => "software",
    });
    let address = env::var("DEV_ADDRESS").unwrap_or_else(|_| ADDRESS.to_owned());
    let is_new = !folder.exists();
    let plan = Plan {
        name: "alpha".to_owned(),
        folder: folder.clone(),
        token,
        token_mode: "auto",
        registration: "token",
        address: address.parse().context("DEV_ADDRESS is an address and a port")?,
        ceremony: true,
        narrator: Narrator::Loud,
        hears_the_terminal: false,
    };
    let told = plan.narrator;
    if is_new {
        told.chapter("A new development enclave");
        told.tell(&format!("Everything of it is in {}.", folder.display()));
    } else {
        told.chapter("The development enclave goes on with its data");
        told.tell(&format!("It is in {}; `make clean` removes it.", folder.display()));
    }
    about_the_token(told, token);
    let mut enclave = Enclave::create(plan, Place::Here)?;
    let took = enclave.start()?;
    told.checked(&format!("the box answers, {} ms after it was started", took.as_millis()));
    let codes = codes(&enclave)?;
    how_to_connect(&enclave, &codes)?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    if runtime.block_on(told_to_stop(&mut enclave))? {
        enclave.stop()?;
        println!("\nThe box has stopped. `make run` goes on with the same data.");
        Ok(())
    } else {
        bail!("the box ended by itself; its log is {}", enclave.log().display());
    }
}

/// Waits for Ctrl-C (true), or for the end of the box (false).
async fn told_to_stop(enclave: &mut Enclave) -> Result<bool> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    loop {
        tokio::select! {
            _ = interrupt.recv() => return Ok(true),
            _ = terminate.recv() => return Ok(true),
            () = sleep(LOOK_EVERY) => if enclave.ended()?.is_some() { return Ok(false) },
        }
    }
}

fn about_the_token(told: Narrator, token: Token) {
    match token {
        Token::Software { .. } => {
            println!();
            println!(
                "   ****************************************************************************"
            );
            println!(
                "   * SOFTWARE TOKEN: the enclave's keys lie in a file. FOR DEVELOPMENT ONLY.  *"
            );
            println!(
                "   * `make run TOKEN=softhsm` puts them into a PKCS#11 token (SoftHSM2).      *"
            );
            println!(
                "   ****************************************************************************"
            );
            println!();
        }
        Token::SoftHsm => told
            .tell("The box's keys lie in a PKCS#11 token, SoftHSM2, and cannot be read out of it."),
    }
}

/// The activation codes: from the roster at the first start, from the file that is left of it later.
fn codes(enclave: &Enclave) -> Result<Vec<Code>> {
    let left = enclave.desk().path("personnel-1.codes");
    if left.exists() {
        return serde_json::from_slice(&fs::read(left)?).context("the file of codes");
    }
    enclave.desk().import_roster(&enclave.plan().server_name(), 1, ROSTER)
}

fn how_to_connect(enclave: &Enclave, codes: &[Code]) -> Result<()> {
    let url = enclave.plan().url();
    let authority = enclave.authority();
    let fingerprint = enclave.authority_fingerprint()?;
    println!("\n== Ready ==");
    println!("   Matrix over HTTPS     {url}");
    println!("   Server name           {}", enclave.plan().server_name());
    println!("   CA certificate        {}", authority.display());
    println!("   CA fingerprint        SHA-256 {fingerprint}");
    println!("   Log of the box        {}", enclave.log().display());
    println!("\n   Accounts, and the codes with which their people take them over (once):");
    for code in codes {
        println!("      {:<28} {}", code.user_id, code.code);
    }
    println!(
        "\n   1. Open {url}/activate in a browser (it will not know the certificate: compare the"
    );
    println!("      fingerprint), type a code, and choose a password.");
    println!("   2. Element Desktop:  NODE_EXTRA_CA_CERTS={} element-desktop", authority.display());
    println!("      then \"Sign in\", \"Edit\" beside the homeserver, {url}");
    println!("      nheko:            SSL_CERT_FILE={} nheko", authority.display());
    println!("      then the user id of the table, and {url} as the homeserver");
    println!(
        "      curl:             curl --cacert {} {url}/_matrix/client/versions",
        authority.display()
    );
    println!(
        "\n   Administer it:  export SALLYPORT_ADMIN_SOCKET={}",
        enclave.plan().admin_socket().display()
    );
    println!("                   {} status", repository::sallyctl()?.display());
    println!("\n   Ctrl-C stops the box.");
    Ok(())
}
