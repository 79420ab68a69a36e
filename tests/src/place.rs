//! Where processes run: on this machine's network, or in a network of their own with nothing but a loopback.

use std::{
    ffi::OsStr,
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

/// A network that processes are started in.
#[derive(Debug)]
pub enum Place {
    /// This machine's.
    Here,
    /// A network namespace. It lasts as long as this value.
    Isolated(Namespace),
}

/// A network namespace that a waiting process keeps alive.
#[derive(Debug)]
pub struct Namespace {
    holder: Child,
    needs_user_namespace: bool,
}

impl Place {
    /// A new network with a loopback interface only. Works as root, and without where the kernel lets users make
    /// namespaces (Debian does).
    ///
    /// # Errors
    /// When the kernel refuses, or `unshare` and `ip` are not installed.
    pub fn isolated() -> Result<Self> {
        let needs_user_namespace = !is_root()?;
        let mut command = Command::new("unshare");
        if needs_user_namespace {
            command.args(["--user", "--map-root-user"]);
        }
        // `cat` waits for the end of its input, so that nothing is left behind even if we are killed.
        let script = "PATH=$PATH:/usr/sbin; ip link set lo up && echo up && exec cat";
        command.args(["--net", "--", "sh", "-c", script]);
        let mut holder = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("`unshare` cannot be started; install util-linux")?;
        let mut answer = [0; 3];
        let stdout = holder.stdout.as_mut().context("no output of `unshare`")?;
        std::io::Read::read_exact(stdout, &mut answer).context(
            "no network namespace can be made here; run as root, or allow user namespaces",
        )?;
        ensure!(&answer == b"up\n", "the loopback interface of the new network is not up");
        Ok(Self::Isolated(Namespace { holder, needs_user_namespace }))
    }

    /// A command that will run in this place.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        match self {
            Self::Here => Command::new(program),
            Self::Isolated(namespace) => {
                let mut command = Command::new("nsenter");
                command.args(["--target", &namespace.holder.id().to_string(), "--net"]);
                if namespace.needs_user_namespace {
                    command.args(["--user", "--preserve-credentials"]);
                }
                command.arg("--").arg(program);
                command
            }
        }
    }
}

impl Place {
    /// Whether a TCP connection to `address` succeeds from this place.
    ///
    /// # Errors
    /// When it cannot be tried.
    pub fn reaches(&self, address: SocketAddr) -> Result<bool> {
        let attempt = format!("exec 3<>/dev/tcp/{}/{}", address.ip(), address.port());
        let mut command = self.command("timeout");
        command.args(["5", "bash", "-c", &attempt]).stderr(Stdio::null());
        Ok(command.status()?.success())
    }

    /// The names of the network interfaces of this place.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn interfaces(&self) -> Result<Vec<String>> {
        let output = self.command("cat").arg("/proc/net/dev").output()?;
        let text = String::from_utf8(output.stdout)?;
        let names = text.lines().filter_map(|line| line.split_once(':'));
        Ok(names.map(|(name, _)| name.trim().to_owned()).collect())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The end of its input ends the holder, and the last process in it ends the namespace.
        drop(self.holder.stdin.take());
        if let Err(error) = self.holder.wait() {
            eprintln!("the namespace's holder: {error}");
        }
    }
}

fn is_root() -> Result<bool> {
    let output = Command::new("id").arg("-u").output().context("`id` cannot be started")?;
    Ok(output.stdout.trim_ascii() == b"0")
}
