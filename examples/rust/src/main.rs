//! Launch a command in a scope of its own, with a helper beside it.
//!
//!     launcher NAME COMMAND [ARGUMENT]...
//!
//! The command gets the path of the helper's socket in $HELPER, and the name of its scope in $SCOPE. generate.py makes the
//! types, the errors and the calls from the interface. The lease ends the machine with this program. A launcher that is to
//! outlive a restart of the service sends the same call again on a new connection, as launcher.c does.

mod moorage;

use moorage::{Error, Helper, HelperSocket, Method, ProcessId, RegisterIn};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};

type Failure = Box<dyn std::error::Error>;

/// Sends a call, and waits for its reply: JSON, and a zero byte.
fn call<M: Method>(service: &mut UnixStream, parameters: &M) -> Result<Result<M::Reply, Error>, Failure> {
    let mut message = serde_json::to_vec(&serde_json::json!({"method": M::NAME, "parameters": parameters}))?;
    message.push(0);
    service.write_all(&message)?;
    let mut reply = Vec::new();
    BufReader::new(service).read_until(0, &mut reply)?;
    if reply.pop() != Some(0) {
        return Err("The service has hung up.".into());
    }
    let mut found: serde_json::Value = serde_json::from_slice(&reply)?;
    if found.get("error").is_some() {
        let text = found.to_string();
        return Ok(Err(serde_json::from_value(found).map_err(|_| text)?));
    }
    Ok(Ok(serde_json::from_value(found["parameters"].take())?))
}

fn launch(name: &str, command: &[String]) -> Result<Result<u8, Error>, Failure> {
    // What is known only once the machine is registered; a leader that still waits for it ends with this program.
    let (theirs, mut ours) = std::io::pipe()?;
    let wait = format!(
        "read -r SCOPE HELPER </proc/$PPID/fd/{} && export SCOPE HELPER && exec \"$@\"",
        theirs.as_raw_fd()
    );
    let mut leader = Command::new("sh").args(["-c", &wait, "sh"]).args(command).spawn()?;

    let address = std::env::var("MOORAGE_ADDRESS").unwrap_or("/run/moorage/io.moorage.Machine".into());
    let mut service = UnixStream::connect(address)?;
    let registered = call(
        &mut service,
        &RegisterIn {
            name: name.into(),
            class: "vm".into(),
            leader: Some(ProcessId { pid: leader.id().into(), ..Default::default() }),
            helpers: Some(vec![Helper {
                name: "echo".into(),
                exec_start: ["/usr/bin/socat", "ACCEPT-FD:3,fork", "EXEC:cat"].map(String::from).into(),
                sockets: Some(vec![HelperSocket { name: "echo.sock".into(), ..Default::default() }]),
                on_failure: Some("stopMachine".into()),
                ..Default::default()
            }]),
            lease: Some(true),
            ..Default::default()
        },
    )?;
    let machine = match registered {
        Ok(reply) => reply.machine,
        Err(error) => {
            leader.kill()?;
            leader.wait()?;
            return Ok(Err(error));
        }
    };
    let directory = machine.runtime_directory.ok_or("The machine has no helpers.")?;
    writeln!(ours, "{} {directory}/echo.sock", machine.unit)?;

    let status = leader.wait()?;
    let ended = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(Ok(ended as u8))
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, command @ ..] = arguments.as_slice() else {
        eprintln!("launcher NAME COMMAND [ARGUMENT]...");
        return ExitCode::from(2);
    };
    match launch(name, command) {
        Ok(Ok(status)) => return ExitCode::from(status),
        Ok(Err(Error::MachineExists { name, unit, .. })) => {
            eprintln!("Machine {name} exists already, in {}.", unit.unwrap_or_default());
        }
        Ok(Err(error)) => eprintln!("{error:?}"),
        Err(failure) => eprintln!("{failure}"),
    }
    ExitCode::FAILURE
}
