//! `make run`: a development enclave under `.dev/`, with a sample roster, for trying out Matrix clients.

use std::{env, fs, net::SocketAddr, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use sallyport_e2e::{
    desk::Code,
    enclave::{Enclave, Plan, Token},
    narrator::Narrator,
    place::Place,
    repository,
};
use tokio::{runtime, signal};

/// Who works in the sample enclave.
const ROSTER: &str = "\
localpart,display_name,unit,clearance
alice,Alice Archer,Headquarters,SECRET
bob,Bob Baker,Headquarters,RESTRICTED
carol,Carol Carter,Signals,SECRET
";

const ADDRESS: ([u8; 4], u16) = ([127, 0, 0, 1], 8448);

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
    let folder = repository::root().join(".dev").join(match token {
        Token::SoftHsm => "softhsm",
        Token::Software { .. } => "software",
    });
    let is_new = !folder.exists();
    let plan = Plan {
        name: "alpha".to_owned(),
        folder: folder.clone(),
        token,
        registration: "token",
        address: SocketAddr::from(ADDRESS),
        ceremony: true,
        narrator: Narrator::Loud,
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
    // Ctrl-C reaches the box too, as it is in the same group of processes; we only wait for its end.
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let _entered = runtime.enter();
    let interrupted = signal::unix::signal(signal::unix::SignalKind::interrupt())?;
    let mut enclave = Enclave::create(plan, Place::Here)?;
    let took = enclave.start()?;
    told.checked(&format!("the box answers, {} ms after it was started", took.as_millis()));
    let codes = codes(&enclave)?;
    how_to_connect(&enclave, &codes)?;
    let status = enclave.wait()?;
    drop(interrupted);
    if !status.success() {
        bail!("the box ended with {status}; its log is {}", enclave.log().display());
    }
    println!("\nThe box has stopped. `make run` goes on with the same data.");
    Ok(())
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
